"""What a process can still do once it is confined: tried in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jvpnd.seccomp import CALLS, NARROWED, program

HEADERS = (
    Path(f"/usr/include/{os.uname().machine}-linux-gnu/asm/unistd_64.h"),
    Path("/usr/include/asm-generic/unistd.h"),
)

TRIED = """
import ctypes, errno, fcntl, json, mmap, os, signal, socket, sys
from jvpnd.landlock import seclude
from jvpnd.seccomp import confine

libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
ours, theirs = socket.socketpair()
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
parent = os.getppid()

def called(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

tried = {
    "open": lambda: os.open("/etc/hostname", os.O_RDONLY),
    "create": lambda: os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT),
    "remove": lambda: os.unlink(sys.argv[1]),
    "look": lambda: os.stat("/etc/hostname"),
    "signal": lambda: os.kill(parent, 0),
    "signal by descriptor": lambda: signal.pidfd_send_signal(pidfd, 0),
    "signal by owner": lambda: fcntl.fcntl(ours, fcntl.F_SETOWN, parent),
    "trace": lambda: called(PTRACE, 16, parent, 0, 0),
    "read memory": lambda: called(VM_READV, parent, None, 0, None, 0, 0),
    "fork": lambda: os.fork() or os._exit(0),
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
    "pair": lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM),
    "bind": lambda: listener.bind(("127.0.0.1", 0)),
    "connect": lambda: listener.connect(("127.0.0.1", 9)),
    "device": lambda: fcntl.ioctl(listener, 0x8913, bytes(40)),  # SIOCGIFFLAGS
    "code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "new uid": lambda: os.setresuid(0, 0, 0),
    "filter": lambda: called(PRCTL, 22, 2, 0, 0, 0),
    "send": lambda: ours.send(b"x"),
    "receive": lambda: theirs.recv(1),
    "blocking": lambda: ours.setblocking(False),
    "memory": lambda: mmap.mmap(-1, 1 << 20).close(),
    "chance": lambda: os.urandom(8),
    "duplicate": lambda: ours.dup().close(),
}
x86 = os.uname().machine == "x86_64"
PTRACE, VM_READV, PRCTL = (101, 310, 157) if x86 else (117, 270, 167)
pidfd = os.pidfd_open(parent)
results = {}
LOCK
for what, call in tried.items():
    try:
        call()
        results[what] = "done"
    except OSError as error:
        results[what] = errno.errorcode[error.errno]
print(json.dumps(results), flush=True)
os._exit(0)
"""
ALLOWED = ("send", "receive", "blocking", "memory", "chance", "duplicate")


def tried_after(lock: str, tmp_path: Path) -> dict[str, str]:
    kept = tmp_path / "kept"
    kept.write_text("kept")
    script = TRIED.replace("LOCK", lock)
    words = (sys.executable, "-c", script, str(kept), str(tmp_path / "new"))
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert not done.stderr
    assert done.returncode == 0
    results: dict[str, str] = json.loads(done.stdout)
    assert kept.exists() == (results["remove"] != "done")
    return results


def test_a_confined_process_reaches_no_file_no_process_and_no_new_socket(tmp_path: Path) -> None:
    results = tried_after("confine()", tmp_path)
    assert dict.fromkeys(ALLOWED, "done").items() <= results.items()
    assert {result for what, result in results.items() if what not in ALLOWED} == {"EPERM"}


def test_the_second_lock_holds_files_by_itself(tmp_path: Path) -> None:
    lock = "results['locked'] = 'done' if seclude() else 'absent'"
    results = tried_after(lock, tmp_path)
    if results["locked"] == "absent":
        pytest.skip("the kernel has no Landlock")
    assert [results[what] for what in ("open", "create", "remove")] == ["EACCES"] * 3
    assert results["trace"] == "EPERM"
    assert results["send"] == "done"


def test_the_numbers_are_the_kernels() -> None:
    for column, header in enumerate(HEADERS):
        if not header.exists():
            pytest.skip(f"there is no {header}")
        lines = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)$", header.read_text(), re.M)
        numbers = {name: int(number) for name, number in lines}
        for name, ours in {**CALLS, **NARROWED}.items():
            assert ours[column] in (None, numbers.get(name)), (header, name)


def test_an_unknown_machine_is_refused_by_name() -> None:
    with pytest.raises(OSError, match="no filter of system calls for pdp11"):
        program("pdp11")
