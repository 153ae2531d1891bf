"""The table [forwarding]: what it means, what is refused, and that docs/ has all of it."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from jvpnd.config import ConfigError, load
from jvpnd.net.forwardplan import Forwarding

from .test_config import CLIENT, DOCS, GATEWAY, SECRET, write_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "private.key", SECRET)
    return tmp_path


def loaded(folder: Path, text: str, role: str = GATEWAY) -> Forwarding:
    file = folder / "jvpnd.toml"
    file.write_text(f"{role}[forwarding]\n{text}\n")
    return load(file).forwarding


def test_without_a_word_clients_talk_and_mss_is_clamped(folder: Path) -> None:
    assert loaded(folder, "") == Forwarding(
        nat=False, client_to_client=True, proxy_neighbours=False, mss_clamp=True
    )


def test_every_key_is_taken(folder: Path) -> None:
    text = 'nat = true\nclient_to_client = false\nproxy_neighbours = ["eth1"]\nmss_clamp = false'
    assert loaded(folder, text) == Forwarding(True, False, ("eth1",), False)
    assert loaded(folder, "proxy_neighbours = true").proxy_neighbours is True
    assert loaded(folder, "proxy_neighbours = false").proxy_neighbours is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nat = 1", "forwarding.nat: 1 is of the wrong type (allowed: true or false)"),
        ('mss_clamp = "yes"', "forwarding.mss_clamp: 'yes' is of the wrong type"),
        ("masquerade = true", "forwarding.masquerade: unknown key (allowed: nat,"),
        ("proxy_neighbours = []", "forwarding.proxy_neighbours: is empty (allowed: true, false or"),
        ('proxy_neighbours = "eth1"', "forwarding.proxy_neighbours: 'eth1' is of the wrong type"),
        ('proxy_neighbours = ["a/b"]', "'a/b' is not an interface name (allowed: true, false or"),
        ('proxy_neighbours = ["jvpn0"]', "jvpn0 is the tunnel itself (allowed: other interfaces)"),
        ('proxy_neighbours = ["e", "e"]', "forwarding.proxy_neighbours: e is there twice"),
    ],
)
def test_what_makes_no_sense_is_refused(folder: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        loaded(folder, text)


def test_a_client_forwards_nothing(folder: Path) -> None:
    with pytest.raises(ConfigError, match="forwarding: is for role = 'gateway'"):
        loaded(folder, "nat = true", CLIENT)


def test_the_docs_have_every_key() -> None:
    text = DOCS.read_text()
    section = text.split("## `[forwarding]`")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == {
        each.name for each in fields(Forwarding) if each.name != "cluster"  # by [cluster]
    }
