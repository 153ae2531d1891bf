"""Changes of the host's network: in order, and one that is refused does not stop the next."""

from __future__ import annotations

import asyncio

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from jvpnd.net.errors import MissingFeature
from jvpnd.shell import Serializer


@pytest.mark.parametrize(
    "refusal", [OSError("no"), NetlinkError(22, "no"), MissingFeature("no sysctl")]
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
