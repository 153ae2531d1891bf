"""The shell: the host's network is changed in order, and nothing goes on after the stop."""

from __future__ import annotations

import asyncio

import pytest

from jvpnd.core.effects import Effect
from jvpnd.core.policy import Policy
from jvpnd.net.changes import Serializer
from jvpnd.net.errors import MissingFeature
from jvpnd.observe.log import EventLog
from jvpnd.shell import CoreDriver


@pytest.mark.parametrize(
    "refusal", [OSError("no"), MissingFeature("no sysctl")]
)
def test_a_refused_change_is_logged_and_the_next_one_is_made(
    refusal: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> list[str]:
        changes, done = Serializer(), asyncio.Event()
        made: list[str] = []

        async def refused() -> None:
            made.append("first")
            raise refusal

        async def last() -> None:
            made.append("second")
            done.set()

        changes.submit(refused)
        changes.submit(last)
        await asyncio.wait_for(done.wait(), 5)
        await changes.close()
        return made

    assert asyncio.run(run()) == ["first", "second"]
    assert "refused a change" in caplog.text


class _Idle:
    """A core that wants nothing."""

    policy = own_policy = Policy()

    def apply_policy(self, now_ms: float, policy: Policy) -> None: ...
    def drain(self) -> list[Effect]:
        return []

    def next_timer_ms(self, now_ms: float) -> float:
        return now_ms

    def timer(self, now_ms: float) -> None: ...


def test_what_comes_in_after_the_stop_sets_no_timer() -> None:
    """The counters that a look reads are gone by then."""
    looks: list[float] = []

    async def packet_after_stop() -> None:
        driver = CoreDriver(_Idle(), EventLog("node", lambda: 0), {}, looks.append, 0)
        driver.stop()
        driver.pump()
        await asyncio.sleep(0)  # a timer that is due at once would fire here
        await asyncio.sleep(0)

    asyncio.run(packet_after_stop())
    assert looks == []
