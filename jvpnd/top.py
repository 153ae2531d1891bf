"""What `jvpnctl top` gets, a few times a minute: little, however many sessions there are.

Counters are read for every session, the rest only for those that are shown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from jvpnd import status
from jvpnd.control.protocol import Refused
from jvpnd.host import now_ms
from jvpnd.observe.top import RateTable, Totals

if TYPE_CHECKING:  # a daemon loads the shell of its own role only
    from jvpnd.client import ClientShell
    from jvpnd.gateway import GatewayShell

Args = Mapping[str, Any]
Json = dict[str, Any]

MIN_INTERVAL_MS: Final = 200
MAX_INTERVAL_MS: Final = 60_000
MAX_ROWS: Final = 500


def client_top(shell: ClientShell) -> Callable[[Args], AsyncIterator[Json]]:
    """The handler of a client: its session and its paths."""

    async def top(args: Args) -> AsyncIterator[Json]:
        interval_ms, rows = _wanted(args)
        table: RateTable[None] = RateTable()
        while True:
            rates = table.look(now_ms(), {None: Totals(*shell.plane.slot_totals(shell.slot))}, 1)
            session, found = status.client_session(shell.agent), status.client_paths(shell)
            yield {
                "role": "client",
                "node": shell.config.node,
                "interval_ms": interval_ms,
                "rates": asdict(rates[None]),
                "sessions": [] if session is None else [{**session, "rates": asdict(rates[None])}],
                "states": {} if session is None else {session["state"]: 1},
                "paths": found[:rows],
                "paths_in_all": len(found),
            }
            await asyncio.sleep(interval_ms / 1000)

    return top


def gateway_top(shell: GatewayShell) -> Callable[[Args], AsyncIterator[Json]]:
    """The handler of a gateway: its busiest sessions."""

    async def top(args: Args) -> AsyncIterator[Json]:
        interval_ms, rows = _wanted(args)
        table: RateTable[bytes] = RateTable()
        in_all: RateTable[None] = RateTable()
        while True:
            held = shell.core.sessions
            totals = {
                session_id: Totals(*shell.plane.slot_totals(slot))
                for session_id, slot in shell.slots.items()
                if session_id in held
            }
            whole = Totals(*map(sum, zip(*totals.values(), strict=True))) if totals else _NOTHING
            now = now_ms()
            (total,) = in_all.look(now, {None: whole}, 1).values()
            shown = table.look(now, totals, rows)
            yield {
                "role": "gateway",
                "node": shell.config.node,
                "interval_ms": interval_ms,
                "rates": asdict(total),
                "sessions": [
                    {**status.gateway_session(shell, held[key]), "rates": asdict(rate)}
                    for key, rate in shown.items()
                ],
                "states": dict(Counter(str(peer.session.state) for peer in held.values())),
                "paths": [],
                "paths_in_all": 0,
            }
            await asyncio.sleep(interval_ms / 1000)

    return top


_NOTHING: Final = Totals(0, 0, 0, 0)


def _wanted(args: Args) -> tuple[int, int]:
    """(interval_ms, rows); Refused where they are out of bounds."""
    bounds = {"interval_ms": (MIN_INTERVAL_MS, MAX_INTERVAL_MS), "rows": (1, MAX_ROWS)}
    found = []
    for key, (least, most) in bounds.items():
        value = args.get(key)
        if type(value) is not int or not least <= value <= most:
            raise Refused("USAGE", f"{key} must be a whole number from {least} to {most}")
        found.append(value)
    return found[0], found[1]
