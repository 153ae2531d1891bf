"""A running daemon reads its configuration again: what it takes over, and what it only names."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jvpnd.cli.reload import reloaded
from jvpnd.config import Config, ConfigError, load
from jvpnd.control.protocol import Refused
from jvpnd.core.gateway import Gateway
from jvpnd.core.listing import ListChange
from jvpnd.core.noise import public_key
from jvpnd.core.peer import ClientEntry
from jvpnd.core.policy import Policy
from jvpnd.entropy import SystemEntropy
from jvpnd.host import now_ms
from jvpnd.observe.log import EventLog
from jvpnd.reloading import Reloader, successor
from jvpnd.shell import CoreDriver

from .served import served
from .test_cli import jvpnctl

T = TypeVar("T")
LAPTOP, PHONE = (base64.b64encode(public_key(each * 32)).decode() for each in (b"l", b"p"))


def client(name: str, key: str, host: int) -> str:
    return f'[[client]]\nname = "{name}"\npublic_key = "{key}"\naddress = ["10.77.0.{host}"]\n'


HEAD = (
    'role = "gateway"\nnode = "gw"\n[interface]\naddress = ["10.77.0.1/24"]\n'
    '[identity]\nprivate_key_file = "key"\n[[listen]]\naddress = "::"\nport = 7700\n'
)


class Shell:
    """A gateway's core, with nothing around it."""

    def __init__(self, config: Config) -> None:
        self.core = Gateway("gw", config.private_key, [], config.policy, SystemEntropy())
        self.events = EventLog("gw", lambda: 0)
        self.driver = CoreDriver(self.core, self.events, {}, lambda _: None, 1_000)

    async def apply_config(self, config: Config) -> ListChange:
        entries = [ClientEntry(c.name, c.public_key, c.address) for c in config.clients]
        change = self.core.apply_clients(now_ms(), entries)
        self.driver.pump()
        return change


class Running:
    """A daemon as far as a reload goes, started with `text`."""

    def __init__(self, file: Path) -> None:
        self.file, config = file, load(file)
        self.shell = Shell(config)
        self.reloader = Reloader(file, config, self.shell)

    def edit(self, text: str) -> None:
        self.file.write_text(text)

    async def first(self) -> None:
        await self.shell.apply_config(load(self.file))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    key = tmp_path / "key"
    key.write_text(base64.b64encode(b"g" * 32).decode())
    key.chmod(0o600)
    file = tmp_path / "jvpnd.toml"
    file.write_text(HEAD + client("laptop", LAPTOP, 2))
    return file


def run(story: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(story)


def test_clients_and_policy_are_taken_over_and_the_rest_is_named(file: Path) -> None:
    async def story() -> dict[str, Any]:
        running = Running(file)
        await running.first()
        assert (await running.reloader.reload()).needs_restart == ()
        text = HEAD.replace("7700", "7701").replace("10.77.0.1/24", "10.77.0.1/16")
        text = f"lanes = 3\n{text}" + client("phone", PHONE, 3)
        running.edit(f"{text}[policy]\nmax_switches_per_minute = 3\n[debug]\ndisable=['aes']\n")
        answer: dict[str, Any] = await running.reloader.command({})
        assert running.shell.core.policy.max_switches_per_minute == 3
        return answer

    answer = run(story())
    assert answer["clients"] == {"added": ("phone",), "removed": ("laptop",), "changed": ()}
    assert (answer["policy_version"], answer["policy_changed"]) == (2, True)
    assert set(answer["needs_restart"]) == {"interface", "listen", "lanes", "debug"}
    assert "needs a restart: interface, listen" in reloaded(answer)


def test_a_file_with_a_fault_changes_nothing(file: Path) -> None:
    async def story() -> None:
        running = Running(file)
        await running.first()
        running.edit(HEAD + "[policy]\nmax_switches_per_minute = 3\ndrain_ms = -1\n")
        with pytest.raises(ConfigError, match="drain_ms"):
            await running.reloader.reload()
        with pytest.raises(Refused, match=r"CONFIG_INVALID.*drain_ms") as refused:
            await running.reloader.command({})
        assert refused.value.reason == "CONFIG_INVALID"
        assert running.shell.core.policy == Policy()
        assert not [e for e in running.shell.events.recent() if e["details"].get("removed")]

    run(story())


def test_another_role_counts_at_the_next_start_only(file: Path) -> None:
    async def story() -> None:
        running = Running(file)
        await running.first()
        key = LAPTOP
        running.edit(
            'role = "client"\nnode = "x"\n[identity]\nprivate_key_file = "key"\n'
            f'[gateway]\npublic_key = "{key}"\n[[gateway.endpoint]]\naddress = "a"\nport = 1\n'
            "[policy]\ndrain_ms = 1\n"
        )
        done = await running.reloader.reload()
        assert (done.needs_restart, done.clients, done.policy_changed) == (("role",), None, False)

    run(story())


@pytest.mark.parametrize(
    ("present", "wanted", "version"),
    [
        (Policy(), Policy(), None),
        (Policy(version=5), Policy(), None),
        (Policy(version=5), Policy(version=7), 7),
        (Policy(version=5), Policy(drain_ms=1), 6),
        (Policy(version=5), Policy(drain_ms=1, version=5), 6),
        (Policy(version=5), Policy(drain_ms=1, version=9), 9),
    ],
)
def test_the_version_of_a_policy_rises_if_it_changes(
    present: Policy, wanted: Policy, version: int | None
) -> None:
    found = successor(present, wanted)
    assert (None if found is None else found.version) == version


def test_hang_ups_reload_and_log_faults_and_the_service_manager_is_told(
    file: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def story() -> None:
        running = Running(file)
        running.edit("role = 1\n")
        for _ in range(100):
            running.reloader.hang_up()
        assert running.reloader._task is not None
        await running.reloader._task
        running.edit(HEAD + client("phone", PHONE, 3))
        running.reloader.hang_up()
        await running.reloader._task

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        run(story())
        told = [manager.recv(200).decode() for _ in range(4)]
        with pytest.raises(BlockingIOError):
            manager.recv(200)
    assert caplog.text.count("not reloaded") == 1
    assert "role" in caplog.text
    for reloading, ready in (told[:2], told[2:]):
        assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
        assert int(reloading.rpartition("=")[2]) > 0
        assert ready == "READY=1"


def test_jvpnctl_reload_says_what_was_done_and_ends_with_2_where_the_file_has_a_fault(
    file: Path, tmp_path: Path
) -> None:
    async def handler(args: Any) -> Any:
        return await reloader.command(args)

    async def make() -> Reloader:
        return Running(file).reloader

    with served(tmp_path / "s", {"reload": handler}) as host:
        reloader = host.run(make())
        done = jvpnctl("--socket", str(tmp_path / "s"), "reload")
        assert (done.returncode, done.stderr) == (0, "")
        assert "clients: added laptop" in done.stdout
        os.truncate(file, 20)
        done = jvpnctl("--socket", str(tmp_path / "s"), "reload")
        assert done.returncode == 2
        assert "CONFIG_INVALID" in done.stderr
