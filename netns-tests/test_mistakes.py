"""What a user gets for a mistake: one line that says what to mend, the right exit status, and
nothing left on the host."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from lab.daemons import Daemon, client_config, gateway_config
from lab.namespace import Namespace

from jvpnd.core.noise import public_key

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).parent.parent
HOST = "192.0.2.5"  # the address that the host of these tests has
NOBODY = 65534
CONFIG, MISSING = 2, 3  # exit status: configuration, or privilege and kernel feature
SHOWN = (
    "ip -j addr",
    "ip -j -4 route show table all",
    "ip -j -6 route show table all",
    "ip -j -4 rule",
    "ip -j -6 rule",
    "nft list ruleset",
    "sysctl net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.src_valid_mark",
)


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


SECRET, OTHER = b"\x11" * 32, b"\x22" * 32
PUBLIC, OTHER_PUBLIC, THIRD_PUBLIC = (
    text_of(public_key(secret)) for secret in (SECRET, OTHER, b"\x33" * 32)
)
CLIENT = client_config(
    OTHER_PUBLIC, "203.0.113.7", routes='[routes]\nnetworks = ["10.20.0.0/16"]\n'
)
GATEWAY = gateway_config({"laptop": OTHER_PUBLIC, "phone": THIRD_PUBLIC}, HOST)


@pytest.fixture(scope="module")
def host() -> Iterator[Namespace]:
    with Namespace("host") as namespace:
        namespace.ip("addr", "add", f"{HOST}/32", "dev", "lo")
        yield namespace


@pytest.fixture
def folder() -> Iterator[Path]:
    """Unlike pytest's own, one that others may enter."""
    path = Path(tempfile.mkdtemp(prefix=f"jvpn-mistake-{os.getpid()}-"))
    path.chmod(0o755)
    try:
        write_key(path / "private.key", SECRET)
        yield path
    finally:
        shutil.rmtree(path)


def write_key(file: Path, secret: bytes) -> None:
    file.write_text(text_of(secret) + "\n")
    file.chmod(0o600)


def swap(text: str, old: str, new: str) -> str:
    """`text` with its one `old` replaced: a case that no longer fits its base file fails."""
    assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in the base file"
    return text.replace(old, new)


@dataclass
class Host:
    """Runs jvpnd on one host, and sees that it leaves the host as it was."""

    namespace: Namespace
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "jvpnd.toml"

    @property
    def runtime(self) -> Path:
        return self.folder / "run"

    def snapshot(self) -> list[str]:
        return [self.namespace.run(*command.split()).stdout for command in SHOWN]

    def jvpnd(self, *more: str, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run it to its end; one that would go on is ended, and fails the test."""
        arguments = ("--config", str(self.file), "--runtime-dir", str(self.runtime), *more)
        process = self.namespace.popen(
            *(*before, sys.executable, "-m", "jvpnd", *arguments),
            stderr=subprocess.PIPE,
            env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"it runs in spite of it:\n{process.communicate()}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def refusal(self, status: int, *more: str, before: Sequence[str] = ()) -> str:
        """The one line of a refused start."""
        state, left = self.snapshot(), self.left()
        done = self.jvpnd(*more, before=before)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert done.stderr.count("\n") == 1, f"not one line:\n{done.stderr}"
        assert self.snapshot() == state
        assert self.left() == left
        return done.stderr.removesuffix("\n")

    def left(self) -> set[Path]:
        """What is in the runtime directory, but for the session table, which stays."""
        return set(self.runtime.glob("*")) - set(self.runtime.glob("sessions.db*"))

    def refusal_of_file(self, text: str) -> str:
        """The line that start and check give alike, before they touch anything."""
        self.file.write_text(text)
        line = self.refusal(CONFIG)
        assert not self.runtime.exists()
        assert self.refusal(CONFIG, "--check") == line
        return line


@pytest.fixture
def user(host: Namespace, folder: Path) -> Host:
    return Host(host, folder)


Slip = tuple[str, str, str]  # what stands in the good file, what the user wrote, key that is named
CLIENT_SLIPS: dict[str, Slip] = {
    "bad role": ('role = "client"', 'role = "server"', "role"),
    "no role": ('role = "client"\n', "", "role"),
    "unknown key": ('node = "laptop"', 'node = "laptop"\nnodes = 1', "nodes"),
    "unknown table": ("[policy]", "[polices]", "polices"),
    "unknown policy": ("[policy]", "[policy]\nmax_switches = 8", "policy.max_switches"),
    "policy range": ("[policy]", "[policy]\ndrain_ms = 100000", "policy.drain_ms"),
    "wrong type": ("port = 7700", 'port = "7700"', "gateway.endpoint[1].port"),
    "port out of range": ("port = 7700", "port = 77000", "gateway.endpoint[1].port"),
    "port zero": ("port = 7700", "port = 0", "gateway.endpoint[1].port"),
    "no such transport": ('"udp"', '"sctp"', "gateway.endpoint[1].transport"),
    "mistyped address": ("203.0.113.7", "203.0.113.700", "gateway.endpoint[1].address"),
    "gateway's section": (
        "[policy]",
        f'[[listen]]\ntransport = "udp"\naddress = "{HOST}"\nport = 7700\n[policy]',
        "listen",
    ),
    "gateway's clients": ("[policy]", '[[client]]\nname = "x"\n[policy]', "client"),
    "no endpoint": (
        '[[gateway.endpoint]]\ntransport = "udp"\naddress = "203.0.113.7"\nport = 7700\n',
        "",
        "gateway.endpoint",
    ),
    "key too short": (OTHER_PUBLIC, OTHER_PUBLIC[4:], "gateway.public_key"),
    "key not base64": (OTHER_PUBLIC, "!" * 44, "gateway.public_key"),
    "own key": (OTHER_PUBLIC, PUBLIC, "gateway.public_key"),
    "no key": (f'public_key = "{OTHER_PUBLIC}"', "", "gateway.public_key"),
    "key file missing": ("private.key", "privat.key", "identity.private_key_file"),
    "bad CIDR": ("10.20.0.0/16", "10.20.0.0/33", "routes.networks"),
    "host bits": ("10.20.0.0/16", "10.20.0.1/16", "routes.networks"),
    "interface name": ('"jvpn0"', '"my vpn interface"', "interface.name"),
    "long interface name": ('"jvpn0"', '"averyveryverylongname"', "interface.name"),
    "own address on a client": (
        'name = "jvpn0"',
        'name = "jvpn0"\naddress = ["10.77.0.2/24"]',
        "interface.address",
    ),
}
GATEWAY_SLIPS: dict[str, Slip] = {
    "client's section": ("[policy]", f'[gateway]\npublic_key = "{OTHER_PUBLIC}"', "gateway"),
    "client's routes": ("[policy]", '[routes]\nmode = "full"\n[policy]', "routes"),
    "no listen": (
        f'[[listen]]\ntransport = "udp"\naddress = "{HOST}"\nport = 7700\n',
        "",
        "listen",
    ),
    "listens on a name": (f'"{HOST}"', '"vpn.example.org"', "listen[1].address"),
    "duplicate name": ('"phone"', '"laptop"', "client.name"),
    "duplicate key": (THIRD_PUBLIC, OTHER_PUBLIC, "client.public_key"),
    "duplicate address": ("10.77.0.3", "10.77.0.2", "client.address"),
    "outside the network": ("10.77.0.3", "10.78.0.3", "client[2].address"),
    "the gateway's own": ("10.77.0.3", "10.77.0.1", "client[2].address"),
    "bad client address": ("10.77.0.3", "10.77.0.3.4", "client[2].address"),
    "no prefix length": ("10.77.0.1/24", "10.77.0.1", "interface.address"),
    "no own address": ('address = ["10.77.0.1/24", "fd77::1/64"]\n', "", "interface.address"),
    "client's networks": (
        '"fd77::3"]',
        '"fd77::3"]\nnetworks = ["192.168.5.1/24"]',
        "client[2].networks",
    ),
}


def assert_names(line: str, file: Path, key: str) -> None:
    assert line.startswith(f"jvpnd: {file}: {key}: ")
    assert " (allowed: " in line
    assert line.endswith(")")


@pytest.mark.parametrize("slip", CLIENT_SLIPS.values(), ids=CLIENT_SLIPS)
def test_a_slip_in_a_clients_file(user: Host, slip: Slip) -> None:
    old, new, key = slip
    assert_names(user.refusal_of_file(swap(CLIENT, old, new)), user.file, key)


@pytest.mark.parametrize("slip", GATEWAY_SLIPS.values(), ids=GATEWAY_SLIPS)
def test_a_slip_in_a_gateways_file(user: Host, slip: Slip) -> None:
    old, new, key = slip
    assert_names(user.refusal_of_file(swap(GATEWAY, old, new)), user.file, key)


@pytest.mark.parametrize("text", [CLIENT, GATEWAY], ids=["client", "gateway"])
def test_a_good_file_checks_as_ok_and_touches_nothing(user: Host, text: str) -> None:
    user.file.write_text(text)
    state = user.snapshot()
    done = user.jvpnd("--check")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{user.file}: ok")
    assert done.stdout.count("\n") == 1
    assert user.snapshot() == state
    assert not user.runtime.exists()


# --- files ---


def test_no_file(user: Host) -> None:
    line = user.refusal(CONFIG)
    assert line.startswith(f"jvpnd: {user.file}: No such file or directory")
    assert user.refusal(CONFIG, "--check") == line


def test_a_folder_for_a_file(user: Host) -> None:
    user.file.mkdir()
    assert f"{user.file}: Is a directory" in user.refusal(CONFIG)


@pytest.mark.parametrize("text", ["role = client", "[[gateway]\n", "\x00", "role = 'client'\n" * 2])
def test_what_is_not_toml(user: Host, text: str) -> None:
    assert f"{user.file}: is not TOML" in user.refusal_of_file(text)


def test_an_empty_file(user: Host) -> None:
    assert_names(user.refusal_of_file(""), user.file, "role")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o620, 0o601])
def test_a_key_file_open_to_others(user: Host, mode: int) -> None:
    key_file = user.folder / "private.key"
    key_file.chmod(mode)
    line = user.refusal_of_file(CLIENT)
    assert_names(line, user.file, "identity.private_key_file")
    assert f"chmod 600 {key_file}" in line


@pytest.mark.parametrize("text", ["", "secret words", text_of(b"\x11" * 31), text_of(bytes(32))])
def test_a_key_file_without_a_key(user: Host, text: str) -> None:
    (user.folder / "private.key").write_text(text)
    line = user.refusal_of_file(CLIENT)
    assert_names(line, user.file, "identity.private_key_file")
    assert not text or text not in line, "a secret, even a mistyped one, is not for the log"


# --- the host ---


def test_a_port_that_is_taken(user: Host) -> None:
    user.file.write_text(GATEWAY)
    holder = user.namespace.popen(
        sys.executable,
        "-c",
        "import socket, sys\n"
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        f"s.bind(('{HOST}', 7700))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()",
        stdin=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "ready\n"
    line = user.refusal(CONFIG)
    holder.kill()
    assert line.startswith(f"jvpnd: {user.file}: listen[1]: ")
    assert f"{HOST}:7700" in line
    assert "another program has this port" in line


def test_an_address_that_is_not_on_this_host(user: Host) -> None:
    listen = '[[listen]]\naddress = "198.51.100.1"\nport = 7700\n[[client]]\nname = "laptop"'
    user.file.write_text(swap(GATEWAY, '[[client]]\nname = "laptop"', listen))
    line = user.refusal(CONFIG)
    assert line.startswith(f"jvpnd: {user.file}: listen[2]: ")
    assert "198.51.100.1:7700" in line
    assert "this host has no such address" in line


@pytest.fixture
def taken(user: Host) -> Iterator[None]:
    user.namespace.ip("link", "add", "jvpn0", "type", "veth", "peer", "name", "other")
    yield
    user.namespace.ip("link", "del", "jvpn0")


@pytest.mark.usefixtures("taken")
@pytest.mark.parametrize("text", [CLIENT, GATEWAY], ids=["client", "gateway"])
def test_an_interface_that_exists_already(user: Host, text: str) -> None:
    user.file.write_text(text)
    line = user.refusal(MISSING)
    assert "jvpn0" in line
    assert "[interface] name" in line


ABSENT = "mount -t tmpfs none /dev/net"
USELESS = "mount --bind /dev/null /dev/net/tun"


@pytest.mark.parametrize("hide", [ABSENT, USELESS], ids=["absent", "useless"])
def test_no_tun_device(user: Host, hide: str) -> None:
    user.file.write_text(CLIENT)
    before = ("unshare", "-m", "sh", "-c", f'{hide} && exec "$@"', "sh")
    line = user.refusal(MISSING, before=before)
    assert "/dev/net/tun is missing" in line
    assert "modprobe tun" in line


def test_not_root(user: Host) -> None:
    user.file.write_text(CLIENT)
    os.chown(user.folder / "private.key", NOBODY, NOBODY)
    os.chown(user.folder, NOBODY, NOBODY)
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    assert "must run as root" in user.refusal(MISSING, before=nobody)
    assert not user.runtime.exists()
    done = user.jvpnd("--check", before=nobody)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_key_of_somebody_else(user: Host) -> None:
    user.file.write_text(CLIENT)
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    for more in ([], ["--check"]):
        line = user.refusal(CONFIG, *more, before=nobody)
        assert_names(line, user.file, "identity.private_key_file")
        assert "Permission denied" in line


def test_root_without_the_right_to_change_the_network(user: Host) -> None:
    user.file.write_text(CLIENT)
    dropped = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    assert "CAP_NET_ADMIN" in user.refusal(MISSING, before=dropped)


def test_a_gateway_that_may_not_let_the_host_forward(user: Host) -> None:
    user.file.write_text(GATEWAY)
    read_only = (
        'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
    )
    state = user.snapshot()
    done = user.jvpnd(before=("unshare", "-m", "sh", "-c", read_only, "sh"))
    assert done.returncode == MISSING, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("jvpnd: cannot set the sysctl net.ipv4.ip_forward to 1: ")
    assert "writable /proc/sys" in last
    assert "Traceback" not in done.stderr
    assert user.snapshot() == state
    assert not list(user.runtime.glob("*.sock"))


# --- the runtime directory ---


def test_a_runtime_directory_that_is_a_file(user: Host) -> None:
    user.file.write_text(CLIENT)
    user.runtime.write_text("")
    line = user.refusal(CONFIG)
    assert str(user.runtime) in line
    assert "--runtime-dir" in line


def test_a_runtime_directory_with_too_long_a_name(user: Host) -> None:
    user.file.write_text(CLIENT)
    long = user.folder / ("x" * 120)
    line = user.refusal(CONFIG, "--runtime-dir", str(long))
    assert str(long) in line
    assert "--runtime-dir" in line
    assert not list(long.glob("*"))


def test_a_second_daemon_in_the_same_runtime_directory(user: Host) -> None:
    first = Daemon(user.namespace, GATEWAY, text_of(SECRET))
    try:
        first.start()
        user.file.write_text(swap(CLIENT, '"jvpn0"', '"jvpn1"'))
        line = user.refusal(CONFIG, "--runtime-dir", str(first.runtime))
        assert line == f"jvpnd: already running: a daemon answers on {first.socket_file}"
        assert first.status()["state"] == "LISTENING"
        assert first.stop() == 0
    finally:
        first.close()


def test_a_second_daemon_on_the_same_interface(user: Host) -> None:
    first = Daemon(user.namespace, CLIENT, text_of(SECRET))
    try:
        first.start()
        user.file.write_text(swap(GATEWAY, "port = 7700", "port = 7701"))
        line = user.refusal(MISSING)
        assert "jvpn0" in line
        assert "[interface] name" in line
        assert first.status()["role"] == "client"
        assert first.stop() == 0
    finally:
        first.close()
