"""Name servers when a change and its undoing come close together; /etc is a copy of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from namespaced import in_namespace, private_mounts, run

from jvpnd.net.dns import HostDns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

THEIRS = "nameserver 192.168.1.1\n"


def on_host(test: Callable[[Path], None]) -> Callable[[], None]:
    """Decorator: an /etc of its own, and a folder for programs that comes first in PATH."""

    def body() -> None:
        private_mounts()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            shutil.copytree("/etc", folder / "etc", symlinks=True)
            (folder / "etc" / "resolv.conf").unlink(missing_ok=True)
            (folder / "etc" / "resolv.conf").write_text(THEIRS)
            run(f"mount --bind {folder}/etc /etc")
            os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
            test(folder)
            run("umount /etc")

    body.__name__ = test.__name__
    return in_namespace(body)


def resolv_conf() -> str:
    return Path("/etc/resolv.conf").read_text()


def slow_resolvconf(folder: Path) -> None:
    """One that takes its time to begin with, until `gate` is opened."""
    os.mkfifo(folder / "begun")
    os.mkfifo(folder / "gate")
    program = folder / "resolvconf"
    program.write_text(
        f"#!/bin/sh\n[ $1 != -a ] || {{ echo > {folder}/begun; cat {folder}/gate; }}\n"
        f"echo $1 >> {folder}/calls\n"
    )
    program.chmod(0o755)


@on_host
def test_what_is_under_way_when_the_daemon_ends_is_undone(folder: Path) -> None:
    slow_resolvconf(folder)

    async def body() -> None:
        dns = HostDns("jx0", folder, ["10.77.0.1"], [])
        await dns.resume(False)
        change = asyncio.create_task(dns.apply())
        await asyncio.to_thread((folder / "begun").read_text)
        change.cancel()
        undo = asyncio.create_task(dns.restore())
        await asyncio.sleep(0)  # it has begun, too
        await asyncio.to_thread((folder / "gate").write_text, "")
        await undo

    asyncio.run(body())
    assert (folder / "calls").read_text().split() == ["-a", "-d"]
    assert not (folder / "dns.json").exists()


@on_host
def test_a_change_that_had_not_begun_is_none(folder: Path) -> None:
    async def body() -> None:
        dns = HostDns("jx0", folder, ["10.77.0.1"], [])
        await dns.resume(False)
        await dns.apply()
        assert resolv_conf() != THEIRS
        await dns.restore()
        assert dns._tell("file", True) is None  # as where its thread comes late
        assert resolv_conf() == THEIRS

    asyncio.run(body())


@on_host
def test_a_manager_that_hangs_is_given_up(folder: Path) -> None:
    slow_resolvconf(folder)

    async def body() -> None:
        dns = HostDns("jx0", folder, ["10.77.0.1"], [])
        await dns.apply()
        status = dns.status()
        assert status is not None
        assert status["problem"] == "resolvconf takes longer than 5 s"
        await dns.restore()

    asyncio.run(body())
