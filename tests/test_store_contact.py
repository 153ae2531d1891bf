"""Whether a node can know that its sessions are its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from jvpnd.store.contact import Contact


def told(story: Callable[[Contact], None]) -> list[float]:
    """The times that are told in the loop of what is done in a thread."""

    async def run() -> list[float]:
        seen: list[float] = []
        loop_thread = threading.current_thread()

        def see(at_ms: float) -> None:
            assert threading.current_thread() is loop_thread
            seen.append(at_ms)

        contact = Contact("etcd", see)
        contact.open()
        await asyncio.to_thread(story, contact)
        await asyncio.sleep(0)
        return seen

    return asyncio.run(run())


def test_the_store_is_seen_only_while_changes_are_heard() -> None:
    def story(contact: Contact) -> None:
        contact.reached(1.0)  # before it hears
        contact.hears()
        contact.reached(2.0)
        contact.deaf("no stream")
        contact.reached(3.0)
        assert contact.problem == "no stream"
        contact.hears()
        contact.reached(4.0)
        assert contact.problem == ""

    assert told(story) == [2.0, 4.0]


def test_a_problem_stays_until_the_same_works_again() -> None:
    def story(contact: Contact) -> None:
        contact.failed("refused")
        contact.hears()
        assert contact.problem == "refused"
        contact.reached(1.0)
        assert contact.problem == ""

    told(story)


def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def story(contact: Contact) -> None:
        for number in range(50):
            contact.failed(f"refused {number}")
        assert contact.problem == "refused 49"

    told(story)
    assert caplog.text.count("etcd cannot be used") == 1


def test_nothing_is_told_after_the_end() -> None:
    async def run() -> None:
        seen: list[float] = []
        contact = Contact("etcd", seen.append)
        contact.open()
        contact.hears()
        contact.reached(1.0)  # on its way
        contact.close()
        contact.reached(2.0)
        await asyncio.sleep(0)
        assert seen == []

    asyncio.run(run())
