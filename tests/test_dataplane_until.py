"""Until when a node of a cluster may send, whatever becomes of its control process."""

from __future__ import annotations

import struct

from jvpnd.dataplane.counters import clock_ms

from .workers import new_session, sender

ENDS = bytes([10, 77, 0, 1]), bytes([10, 77, 0, 2])
PACKET = struct.pack("!BBHHHBBH4s4sII", 0x45, 0, 28, 0, 0, 64, 1, 0, *ENDS, 0, 0)
FRAME = bytes(10) + PACKET  # behind an empty vnet header
HOUR_MS = 3_600_000


def test_a_worker_forgets_its_keys_when_its_time_is_over() -> None:
    with sender(new_session(0)) as end:
        end.counters.allow_until(clock_ms() + HOUR_MS)
        end.send([FRAME])
        assert end.packets() == 1
        end.counters.allow_until(clock_ms() - 1)
        assert end.send([FRAME]) == []
        assert end.drops() == {"no_binding": 1}
        end.counters.allow_until(clock_ms() + HOUR_MS)
        assert end.send([FRAME]) == [], "what was bound before is not brought back"


def test_what_is_bound_later_may_send_again() -> None:
    with sender() as end:
        end.counters.allow_until(clock_ms() - 1)
        assert end.send([FRAME]) == []
        end.counters.allow_until(clock_ms() + HOUR_MS)
        end.bind(new_session(0))
        end.send([FRAME])
        assert end.packets() == 1
