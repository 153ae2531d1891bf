"""Keys that stand in the configuration file itself, so that it is the only one."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from jvpnd.config import ConfigError, load

from .test_config import CLIENT, GATEWAY, PSK, SECRET

SECRET_TEXT, PSK_TEXT = (base64.b64encode(each).decode() for each in (SECRET, PSK))
IDENTITY = '[identity]\nprivate_key_file = "private.key"'


def inline(base: str, peer: str) -> str:
    text = base.replace(IDENTITY, f'[identity]\nprivate_key = "{SECRET_TEXT}"')
    return text.replace(peer, f'{peer}\npreshared_key = "{PSK_TEXT}"')


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "jvpnd.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


@pytest.mark.parametrize(
    ("base", "peer"), [(CLIENT, "[gateway]"), (GATEWAY, '[[client]]\nname = "phone"')]
)
def test_one_file_is_enough(tmp_path: Path, base: str, peer: str) -> None:
    config = load(written(tmp_path, inline(base, peer)))
    assert config.private_key == SECRET
    assert (config.gateway or config.clients[1]).preshared_key == PSK


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o644])
def test_others_may_not_read_or_write_a_file_with_a_key(tmp_path: Path, mode: int) -> None:
    file = written(tmp_path, inline(CLIENT, "[gateway]"), mode)
    with pytest.raises(ConfigError) as found:
        load(file)
    assert found.value.key == "identity.private_key"
    assert f"mode {mode:04o}" in found.value.problem
    assert found.value.allowed == f"chmod 600 {file}, or private_key_file"


def test_a_key_is_there_once_and_a_wrong_one_is_not_shown(tmp_path: Path) -> None:
    both = CLIENT.replace(IDENTITY, f'{IDENTITY}\nprivate_key = "{SECRET_TEXT}"')
    with pytest.raises(ConfigError, match="besides private_key_file"):
        load(written(tmp_path, both))
    almost = inline(CLIENT, "[gateway]").replace(SECRET_TEXT, SECRET_TEXT[:-4])
    with pytest.raises(ConfigError, match="holds 30 bytes") as found:
        load(written(tmp_path, almost))
    assert SECRET_TEXT[:8] not in str(found.value)
