"""A Debian of its own: booted by its systemd, in a container, on a given network namespace.

Needs root and systemd-nspawn. The mounts lie in a mount namespace of the caller's
(`private_mounts`) and go with it, however it ends; so does the container.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "iproute2", "iputils-ping", "python3-minimal", "procps"),
    *("ca-certificates", "nftables", "python3", "man-db", "bash-completion"),
    "systemd-resolved",
)
BOOT_TIMEOUT_S, STOP_TIMEOUT_S = 60, 30
REBOOT = 133  # nspawn's exit status when the container wants to be booted again
_CGROUPS = Path("/sys/fs/cgroup")
_CLONE_NEWNS, _MS_PRIVATE, _MS_REC = 0x20000, 1 << 18, 1 << 14
_PR_SET_PDEATHSIG, _SIGKILL = 1, 9
_LIBC = ctypes.CDLL(None, use_errno=True)


def private_mounts() -> None:
    """What is mounted from here on is seen by us and our children, and goes with us; there are
    cgroups of version 2 in it, as systemd wants them."""
    if _LIBC.unshare(_CLONE_NEWNS) or _LIBC.mount(b"none", b"/", None, _MS_PRIVATE | _MS_REC, None):
        raise OSError(ctypes.get_errno(), "cannot get mounts of our own")
    if not (_CGROUPS / "cgroup.procs").exists():
        mount("none", _CGROUPS, "cgroup2")
    Path("/run/systemd/nspawn").mkdir(parents=True, exist_ok=True)
    mount("none", Path("/run/systemd/nspawn"), "tmpfs")


def mount(what: str, where: Path, kind: str, options: str = "") -> None:
    more = ("-o", options) if options else ()
    subprocess.run(("mount", "-t", kind, *more, what, where), check=True)


def base_system(folder: Path) -> None:
    """A small Debian 12 for machines to begin from."""
    include = ",".join(PACKAGES)
    subprocess.run(
        ("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", "bookworm", folder),
        check=True,
    )


class Machine:
    """Begins as `base`, with changes in memory; it has the network of the namespace `netns`."""

    def __init__(self, name: str, base: Path, folder: Path, netns: str) -> None:
        self.name, self._netns = name, netns
        self._folder = folder / name
        self.root = self._folder / "root"
        self._folder.mkdir()
        mount("none", self._folder, "tmpfs")
        for part in ("upper", "work", "root"):
            (self._folder / part).mkdir()
        layers = f"lowerdir={base},upperdir={self._folder}/upper,workdir={self._folder}/work"
        mount("none", self.root, "overlay", layers)
        (self.root / "etc/hostname").write_text(f"{name}\n")
        self._cgroup = _CGROUPS / f"acceptance-{os.getpid()}-{name}"
        self._cgroup.mkdir()
        self._log = (self._folder / "console").open("wb")
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def boot(self) -> float:
        """Boot it and wait until it is up; seconds that it took."""
        began = time.monotonic()
        self._process = subprocess.Popen(
            (
                *("systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit"),
                *(f"--directory={self.root}", f"--machine={self.name}"),
                f"--network-namespace-path=/run/netns/{self._netns}",
                "--capability=CAP_NET_ADMIN",
                # without bpf systemd leaves DeviceAllow= be, and says nothing
                "--system-call-filter=bpf landlock_create_ruleset landlock_restrict_self",
            ),
            env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            preexec_fn=self._enter_cgroup,
        )
        while not (self._find_leader() and self._is_up()):
            if self._process.poll() is not None or time.monotonic() - began > BOOT_TIMEOUT_S:
                raise RuntimeError(f"{self.name} does not boot:\n{self.console[-3000:]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def run(self, *command: str, check: bool = True) -> str:
        """What a command prints inside, both streams; RuntimeError where it fails."""
        done = subprocess.run(
            (*self._inside(), *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if check and done.returncode:
            said = f"{' '.join(command)}: exit status {done.returncode}\n{done.stdout}"
            raise RuntimeError(f"{self.name}: {said}")
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A command inside, in the background."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen((*self._inside(), *command), text=True, **pipes)

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        file = self.root / path.lstrip("/")
        file.touch(mode)
        file.write_text(text)

    def read(self, path: str) -> str:
        return (self.root / path.lstrip("/")).read_text()

    def copy(self, file: Path) -> str:
        """Take a file in; its name inside."""
        shutil.copy(file, self.root / "root" / file.name)
        return f"/root/{file.name}"

    def reboot(self, meanwhile: Callable[[], None] = lambda: None) -> float:
        """As `reboot` inside does; seconds until it is up again. `meanwhile`: while it is off."""
        began = time.monotonic()
        self.run("systemctl", "reboot")
        assert self._process is not None
        status = self._process.wait(STOP_TIMEOUT_S)
        if status != REBOOT:
            raise RuntimeError(f"{self.name} ended with {status} instead of booting again")
        meanwhile()
        self.boot()
        return time.monotonic() - began

    @property
    def console(self) -> str:
        return (self._folder / "console").read_text(errors="replace")

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()
        for folder in sorted((p for p in self._cgroup.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        self._cgroup.rmdir()

    def _enter_cgroup(self) -> None:
        (self._cgroup / "cgroup.procs").write_text(str(os.getpid()))
        _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)

    def _find_leader(self) -> bool:
        """Its PID 1, as we see it: the child of nspawn that is first of a PID namespace."""
        assert self._process is not None
        pid = self._process.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for child in children:
                lines = Path(f"/proc/{child}/status").read_text().splitlines()
                numbers = next(line for line in lines if line.startswith("NSpid:")).split()
                if len(numbers) > 2 and numbers[-1] == "1":
                    self._leader = int(child)
                    return True
        except OSError:
            pass
        return False

    def _is_up(self) -> bool:
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    def _inside(self) -> Sequence[str]:
        spaces = ("-m", "-u", "-i", "-n", "-p", "-C")
        clean = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "TERM=dumb")
        return ("nsenter", "-t", str(self._leader), *spaces, *clean)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
