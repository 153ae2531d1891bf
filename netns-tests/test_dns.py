"""Name servers inside the tunnel: what a client does to its host, and that it is all put back.

The host's /etc is a copy in a mount namespace. systemd-resolved and resolvconf are stood in for by
programs that note what they are told: the real ones need a booted system.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab.daemons import Pair, client_config
from lab.stage import until
from lab.topology import OUTSIDE, Lab

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

DNS = '[routes]\nmode = "full"\n[dns]\nservers = ["10.77.0.1", "fd77::1"]\n'
THEIRS = b"nameserver 192.168.1.1\nsearch home"  # and no newline
MANAGED = "nameserver 10.77.0.1\nnameserver fd77::1\n"


class Host:
    """The client's host: an /etc of its own, and programs that note how they are called."""

    def __init__(self, folder: Path) -> None:
        self.etc, self.bin, self.resolved = (folder / name for name in ("etc", "bin", "resolve"))
        shutil.copytree("/etc", self.etc, symlinks=True, ignore_dangling_symlinks=True)
        self.bin.mkdir()
        self.resolved.mkdir()
        self.calls_file = folder / "calls"
        self.resolv_conf = self.etc / "resolv.conf"
        self.resolv_conf.unlink(missing_ok=True)
        self.resolv_conf.write_bytes(THEIRS)
        self._holder: subprocess.Popen[str] | None = None

    def enter(self, *mounts: str) -> tuple[str, ...]:
        """Make the mount namespace, with more mounts; what a command is run with to be in it."""
        binds = [f"mount --bind {self.etc} /etc", *mounts]
        script = " && ".join([*binds, "echo ready", "exec sleep infinity"])
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", script]
        self._holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        return ("nsenter", "--target", str(self._holder.pid), "--mount")

    def program(self, name: str, status: int = 0) -> None:
        """One that notes its arguments and its input."""
        file = self.bin / name
        log = shlex.quote(str(self.calls_file))
        file.write_text(
            f'#!/bin/sh\necho "{name} $*" >> {log}\n'
            f'[ "$1" != -a ] || cat >> {log}\n'
            f"[ {status} = 0 ] || echo 'it is broken' >&2\nexit {status}\n"
        )
        file.chmod(0o755)

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def close(self) -> None:
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    try:
        yield host
    finally:
        lab.client.prefix = ()
        host.close()


@contextlib.contextmanager
def pair(lab: Lab, host: Host, *mounts: str, dns: str = DNS) -> Iterator[Pair]:
    """A gateway that runs, and a client on `host` that does not yet."""
    lab.client.prefix = host.enter(*mounts)
    with Pair(lab.client, lab.gateway, routes=dns) as made:
        made.client.environment["PATH"] = f"{host.bin}:{os.environ['PATH']}"
        made.gateway.start()
        yield made


def start(made: Pair) -> None:
    """Up, and names are looked up inside; or it is said why not."""
    made.client.start()
    made.client.wait_state("ATTACHED")

    def is_told() -> bool:
        dns = made.client.status()["dns"]
        return bool(dns["is_set"] or dns["problem"])

    until(is_told, "the manager was told")


@pytest.mark.parametrize("kind", ["file", "link", "mount"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_managed_file_serves_the_session_and_goes(
    lab: Lab, host: Host, kind: str, how: signal.Signals
) -> None:
    mounts = []
    shown = host.resolv_conf  # where it can be seen from outside
    if kind == "link":
        host.resolv_conf.rename(host.etc / "their.conf")
        host.resolv_conf.symlink_to("their.conf")
    elif kind == "mount":
        shown = host.etc.parent / "mounted"
        shown.write_bytes(THEIRS)
        mounts = [f"mount --bind {shown} /etc/resolv.conf"]
    with pair(lab, host, *mounts) as made:
        start(made)
        assert made.client.status()["dns"]["manager"] == "file"
        assert "all from 10.77.0.1, fd77::1 (by file)" in made.client.ctl("status").stdout
        assert shown.read_text().split("# What")[0].endswith(MANAGED)
        made.client.stop(how)
        if how is signal.SIGKILL:
            assert MANAGED in shown.read_text()  # so does the tunnel stay
            start(made)
            assert MANAGED in shown.read_text()
            made.client.stop()
        assert shown.read_bytes() == THEIRS
        assert shown.is_symlink() == (kind == "link")
        start(made)
        assert MANAGED in shown.read_text()


def test_while_the_session_recovers_names_stay_inside(lab: Lab, host: Host) -> None:
    with pair(lab, host) as made:
        start(made)
        seq = made.client.last_seq()
        made.gateway.stop(signal.SIGKILL)
        made.client.wait_state("RECOVERING", after=seq)
        assert MANAGED in host.resolv_conf.read_text()
        assert made.client.stop() == 0
        assert host.resolv_conf.read_bytes() == THEIRS


def test_after_a_reboot_the_next_start_puts_it_back(lab: Lab, host: Host) -> None:
    """The runtime directory and the interface are gone, and no session comes."""
    with pair(lab, host) as made:
        start(made)
        made.client.stop(signal.SIGKILL)
        made.gateway.stop()
        shutil.rmtree(made.client.runtime)
        lab.client.ip("link", "del", "jvpn0")
        assert MANAGED in host.resolv_conf.read_text()
        made.client.start()
        assert host.resolv_conf.read_bytes() == THEIRS


def test_after_a_reboot_it_can_be_put_back_without_a_daemon(lab: Lab, host: Host) -> None:
    with pair(lab, host) as made:
        start(made)
        made.client.stop(signal.SIGKILL)
        shutil.rmtree(made.client.runtime)
        done = restore(made)
        assert (done.returncode, done.stderr) == (0, "")
        assert host.resolv_conf.read_bytes() == THEIRS
        assert restore(made).returncode == 0  # there is nothing to do


def test_what_somebody_changed_is_left_and_it_is_said(lab: Lab, host: Host) -> None:
    with pair(lab, host) as made:
        start(made)
        host.resolv_conf.write_bytes(b"nameserver 192.168.7.7\n")
        made.client.stop(signal.SIGKILL)
        start(made)
        problem = made.client.status()["dns"]["problem"]
        assert problem == (
            "/etc/resolv.conf: somebody has changed it since, and it is left as it is"
        )
        assert f"name servers are not set: {problem}" in made.client.ctl("status").stdout
        made.client.stop()
        assert host.resolv_conf.read_bytes() == b"nameserver 192.168.7.7\n"
        assert "name servers are not put back" in made.client.log


def test_a_client_that_is_configured_without_puts_back_what_was_left(lab: Lab, host: Host) -> None:
    with pair(lab, host) as made:
        start(made)
        made.client.stop(signal.SIGKILL)
        made.client.config_file.write_text(client_config(made.gateway_keys[1], OUTSIDE[4]))
        made.client.start()
        assert host.resolv_conf.read_bytes() == THEIRS
        assert made.client.status()["dns"] is None


RESOLVED = [
    "resolvectl dns jvpn0 10.77.0.1 fd77::1",
    "resolvectl domain jvpn0 ~.",
    "resolvectl default-route jvpn0 yes",
]


def resolved(host: Host) -> str:
    """As where systemd-resolved runs; the mount that it takes."""
    (host.resolved / "stub-resolv.conf").write_text("nameserver 127.0.0.53\n")
    host.resolv_conf.unlink()
    host.resolv_conf.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    return (
        f"mount -t tmpfs none /run/systemd && mkdir /run/systemd/resolve && "
        f"mount --bind {host.resolved} /run/systemd/resolve"
    )


def test_resolved_is_told_by_link_and_told_again_after_a_kill(lab: Lab, host: Host) -> None:
    host.program("resolvectl")
    host.program("resolvconf")
    with pair(lab, host, resolved(host)) as made:
        start(made)
        assert host.calls() == RESOLVED
        made.client.stop(signal.SIGKILL)
        start(made)
        assert host.calls() == RESOLVED * 2
        made.client.stop()
        assert host.calls() == [*RESOLVED * 2, "resolvectl revert jvpn0"]
        assert os.readlink(host.resolv_conf) == "../run/systemd/resolve/stub-resolv.conf"


def test_resolved_gets_the_domains_and_no_more(lab: Lab, host: Host) -> None:
    host.program("resolvectl")
    dns = f'{DNS}domains = ["corp.example", "lan"]\n'
    with pair(lab, host, resolved(host), dns=dns) as made:
        start(made)
        assert host.calls()[1:] == [
            "resolvectl domain jvpn0 corp.example lan",
            "resolvectl default-route jvpn0 no",
        ]


def test_a_manager_that_fails_does_not_stop_the_tunnel(lab: Lab, host: Host) -> None:
    host.program("resolvectl", status=1)
    with pair(lab, host, resolved(host)) as made:
        start(made)
        problem = "resolvectl dns: it is broken"
        assert made.client.status()["dns"]["problem"] == problem
        assert f"name servers are not set: {problem}" in made.client.log
        lab.client.run("ping", "-c1", "-W5", "10.77.0.1")
        assert made.client.stop() == 0


def test_resolvconf_is_told_and_told_off(lab: Lab, host: Host) -> None:
    host.program("resolvconf")
    with pair(lab, host, dns=f'{DNS}domains = ["corp.example"]\n') as made:
        start(made)
        told = ["nameserver 10.77.0.1", "nameserver fd77::1", "search corp.example"]
        assert host.calls() == ["resolvconf -a jvpn0.jvpn -m 0 -x", *told]
        assert "all names are for the tunnel's name servers" in made.client.log
        made.client.stop()
        assert host.calls()[-1] == "resolvconf -d jvpn0.jvpn -f"
        assert host.resolv_conf.read_bytes() == THEIRS


def restore(made: Pair) -> subprocess.CompletedProcess[str]:
    """`jvpnctl dns restore` on the client's host."""
    command = (sys.executable, "-m", "jvpnd.cli.main", "dns", "restore")
    directory = ("--runtime-dir", str(made.client.runtime))
    return made.client.namespace.run(*command, *directory, check=False)
