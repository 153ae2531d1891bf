"""Network namespaces with names of their own, removed whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()

T = TypeVar("T")


def ip(*arguments: str) -> None:
    """Run `ip`, and say what it said if it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def sweep() -> None:
    """Remove what this process has left: an interrupt can come between any two lines."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        name = line.split()[0]
        if name.startswith(f"jv{os.getpid()}-"):
            inside = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for pid in inside.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(RuntimeError):
                ip("netns", "del", name)


class Namespace:
    """One host. Processes started through it are ended, by pid, when it is closed."""

    def __init__(self, label: str) -> None:
        self.name = f"jv{os.getpid()}-{next(_numbers)}-{label}"
        self._processes: list[subprocess.Popen[str]] = []
        self.prefix: tuple[str, ...] = ()  # what every command is run with
        ip("netns", "add", self.name)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments: str) -> None:
        ip("-n", self.name, *arguments)

    def ip_batch(self, *lines: str) -> None:
        """Several `ip` commands in one process, one right after the other."""
        # -6 is an option of ip, not of a batch line: such lines get a batch of their own.
        for option in ("-4", "-6"):
            chosen = [line for line in lines if line.startswith("-6 ") == (option == "-6")]
            text = "\n".join(line.removeprefix("-6 ") for line in chosen)
            family = [option] if option == "-6" else []
            subprocess.run(
                ["ip", "-n", self.name, *family, "-batch", "-"],
                input=text,
                text=True,
                check=True,
                timeout=60,
                capture_output=True,
            )

    def argv(self, *command: str) -> list[str]:
        """The command as run inside."""
        return [*self.prefix, "ip", "netns", "exec", self.name, *command]

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*command), capture_output=True, text=True, check=check, timeout=60
        )

    def nft(self, ruleset: str) -> None:
        """Load nftables rules."""
        subprocess.run(
            self.argv("nft", "-f", "-"), input=ruleset, text=True, check=True, timeout=60
        )

    def sysctl(self, key: str, value: str) -> None:
        self.run("sysctl", "-qw", f"{key}={value}")

    def popen(
        self,
        *command: str,
        stdin: int | None = subprocess.DEVNULL,
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
    ) -> subprocess.Popen[str]:
        """Start a process inside; it ends with the namespace."""
        process = subprocess.Popen(
            self.argv(*command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            env=None if env is None else {**os.environ, **env},
        )
        self._processes.append(process)
        return process

    def within(self, make: Callable[[], T]) -> T:
        """What `make` returns in a thread inside; a socket stays where it was made."""
        made: list[T] = []

        def body() -> None:
            with open(f"/run/netns/{self.name}", "rb") as handle:
                if _LIBC.setns(handle.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(make())

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        assert made, f"nothing was made in {self.name}"
        return made[0]

    def close(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        self._processes.clear()
        with contextlib.suppress(RuntimeError):
            ip("netns", "del", self.name)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
