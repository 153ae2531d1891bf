"""Control's hold on a helper process: how it ended is told truly, and waiting for it blocks nobody.

The child is an interpreter that runs the statements of the test.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest

from jvpnd.child import ChildProcess
from jvpnd.spawn import Spawned

PATIENCE_S = 20


def started(statements: str) -> Spawned:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        number = theirs.fileno()
        command = [sys.executable, "-c", statements, str(number)]
        return Spawned(subprocess.Popen(command, pass_fds=(number,)), ours)


def ended(statement: str, then: Callable[[ChildProcess], None] = lambda _: None) -> str:
    """How a child ended that ran this; `then` is called once it has said something."""

    async def run() -> str:
        over, spoke = asyncio.Event(), asyncio.Event()
        setup = "import os, socket, sys, time; number = int(sys.argv[1])"
        hello = "socket.socket(fileno=os.dup(number)).send(b'hello')"
        child = ChildProcess(
            started("; ".join((setup, hello, statement))),
            64,
            lambda data, fds: spoke.set(),
            over.set,
        )
        assert child.how_it_ended == ""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await spoke.wait()
                then(child)
                await over.wait()
        finally:
            await child.stop()
        return child.how_it_ended

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("statement", "how"),
    [
        ("os._exit(0)", "exit status 0"),
        ("os._exit(7)", "exit status 7"),
        ("raise MemoryError", "exit status 1"),
        ("os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "signal 40"),
    ],
)
def test_how_a_child_ended_is_its_own_doing(statement: str, how: str) -> None:
    assert ended(statement) == how


def test_a_child_that_is_killed_ends_by_that() -> None:
    assert ended("time.sleep(60)", ChildProcess.kill) == "signal SIGKILL"


def test_a_child_that_is_killed_twice_ends_once() -> None:
    """The second time it is found dead before its channel tells."""

    def kill(child: ChildProcess) -> None:
        child.kill()
        while not child.how_it_ended:
            child.kill()

    assert ended("time.sleep(60)", kill) == "signal SIGKILL"


def test_a_child_that_hangs_up_and_goes_on_is_ended() -> None:
    assert ended("os.close(number); time.sleep(60)") == "signal SIGKILL"


def test_a_child_that_is_stopped_while_it_ends_tells_nobody() -> None:
    async def run() -> None:
        told: list[str] = []
        child = ChildProcess(started("1 / 0"), 64, lambda *_: None, lambda: told.append("x"))
        child._ended()  # as when its channel has ended
        await child.stop()
        await asyncio.sleep(0)
        assert told == []
        assert child.how_it_ended

    asyncio.run(run())
