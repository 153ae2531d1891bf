"""What the benchmark wants to know of a peer."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from lab.namespace import Namespace

from bench.link import Link

STOP_S = 5.0
LOG_TAIL = 2000  # characters that an error shows


@dataclass(frozen=True)
class Tunnel:
    """A peer that runs: where traffic goes to, and whose CPU time and memory count."""

    gateway: str  # the gateway's address inside
    client_pids: tuple[int, ...] = field(default=())
    gateway_pids: tuple[int, ...] = field(default=())


class Peer(ABC):
    """One contender; `name` is what --only takes, `label` what tables and charts show."""

    name: str
    label: str
    family: str  # "plain", "jvpn" or the product's own

    @abstractmethod
    def version(self) -> str:
        """As numbers and dots, for a peer that is there."""

    def missing(self) -> str:
        """What it needs and this host lacks; empty if it can run."""
        return ""

    @abstractmethod
    def start(self, link: Link) -> AbstractContextManager[Tunnel]:
        """Both ends up, as a user starts them; they are gone after the context.

        Traffic may need a moment yet: the benchmark pings until it passes.
        """


def output(*command: str) -> str:
    """What a command says, on both streams; its status does not matter."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=20,
        check=False,
    )
    return done.stdout


@contextlib.contextmanager
def running(namespace: Namespace, log: Path, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A daemon in the foreground of a namespace, its words in a file, ended by SIGTERM.

    What fails meanwhile is told with its last words.
    """
    with log.open("w") as out:
        process = namespace.popen(*command, stdout=out.fileno(), stderr=out.fileno())
    try:
        yield process
    except Exception as error:
        error.add_note(f"{log.stem}: {log.read_text()[-LOG_TAIL:]}")
        raise
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """For configuration files with keys: this user's only, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="jvpn-bench-") as name:
        yield Path(name)
