"""Counters in memory that the workers write and control reads, without a message or a lock.

One memfd with a part for each lane: a row for each of its two workers (drops by cause, and turns of
its loop), then sixteen words a slot. A worker maps the part of its lane only. Each word is an
aligned u64 with exactly one writer, so a reader never sees half a number. Nothing is ever reset (a
restarted worker goes on counting): who wants a session's share takes differences. One word is
control's to write: until when the lane may send.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections import Counter
from collections.abc import Sequence
from enum import IntEnum
from typing import Final

from jvpnd.core.dataclass import dataclass

SLOTS: Final = 16384
ROLES: Final = ("uplink", "downlink")

_ROW_WORDS: Final = 32
_SLOT_WORDS: Final = 16
_SLOTS_AT: Final = _ROW_WORDS * len(ROLES)
_WORDS: Final = _SLOTS_AT + _SLOT_WORDS * SLOTS
_PAGE: Final = mmap.ALLOCATIONGRANULARITY
_LANE_SIZE: Final = -(-8 * _WORDS // _PAGE) * _PAGE

TX_PACKETS: Final = 0
TX_BYTES: Final = 1
LAST_TX_MS: Final = 2
RX_PACKETS: Final = 3
RX_BYTES: Final = 4
LAST_RX_MS: Final = 5
LAST_RX_INDEX: Final = 6
TX_SPANS: Final = 7
RX_RECORDS: Final = 8  # good records under the newest index, and those missing below the highest
RX_MISSING: Final = 9
PEER_RECORDS: Final = 10  # the same two as the peer last told them, and when
PEER_MISSING: Final = 11
TX_UNSENT: Final = 12  # records sealed under the present binding that the socket did not take
PEER_UNSENT: Final = 13  # the same of the peer
PEER_TOLD_MS: Final = 14
PEER_LIMIT: Final = 15  # how long datagrams may be, as the peer last told; 0 if it did not

TURNS: Final = _ROW_WORDS - 1  # of a worker's row: how often its loop went round (pulse.py)
SEND_UNTIL: Final = _ROW_WORDS - 2  # of the uplink's row: see Counters.allow_until


class Drop(IntEnum):
    """Why a packet was dropped. The name in lower case is what users see."""

    MALFORMED = 0  # lengths, flags or headers that contradict each other
    UNKNOWN_TYPE = 1  # the first byte is no packet type, or the packet is too long for its type
    UNKNOWN_INDEX = 2  # no session expects this receiver index
    BAD_TAG = 3  # not sealed with the session's key
    REPLAYED = 4  # counter seen before, or too old
    BAD_SOURCE = 5  # inner source address is not the session's
    EARLY_OVERFLOW = 6  # early data beyond what is held
    EARLY_EXPIRED = 7  # early data whose binding never came
    CONTROL_BUSY = 8  # control did not take its packets fast enough
    TUN_WRITE = 9  # the kernel refused the packet
    NO_ROUTE = 10  # inner destination belongs to no session
    NO_BINDING = 11  # the session has no transport at the moment
    TOO_BIG = 12  # does not fit into one datagram
    SEND_BUFFER = 13  # the transport socket stayed full
    SEND_ERROR = 14  # the transport socket reported an error
    UNSUPPORTED = 15  # a super-packet of a kind that is not offered to the kernel
    INCOMPLETE = 16  # parts of a record of which others never came
    WRONG_LANE = 17  # DATA that came to the worker of another lane
    FOREIGN = 18  # from another address than the one that the socket is for


@dataclass(frozen=True, slots=True)
class SlotCounters:
    """What passed through one slot. Packets and bytes are inner ones, after cutting; times are
    CLOCK_BOOTTIME in ms, 0 for never; last_rx_index is the receiver index last heard under.
    tx_spans: records that spanned several datagrams. Records and missing ones are totals of the
    newest epoch: rx of what came here, peer of what the other end says came to it; unsent ones were
    sealed, but dropped before they left their host."""

    tx_packets: int
    tx_bytes: int
    last_tx_ms: int
    rx_packets: int
    rx_bytes: int
    last_rx_ms: int
    last_rx_index: int
    tx_spans: int
    rx_records: int
    rx_missing: int
    peer_records: int
    peer_missing: int
    tx_unsent: int
    peer_unsent: int


def clock_ms() -> int:
    """CLOCK_BOOTTIME in ms, the clock of every time in the shared memory."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


class Counters:
    """One lane's part of the shared memory, which control creates and the workers map through its
    descriptor."""

    def __init__(self, fd: int, lane: int = 0) -> None:
        self._map = mmap.mmap(fd, _LANE_SIZE, offset=lane * _LANE_SIZE)
        self.words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, lanes: int = 1) -> tuple[Counters, int]:
        """New counters, all zero: lane 0's, and the memfd to hand to the workers, which the caller
        closes."""
        fd = os.memfd_create("jvpn-counters", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, lanes * _LANE_SIZE)  # a page comes into being when it is written
        # A worker that shrank it would kill control with SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        return cls(fd), fd

    def drops_of(self, role: str) -> memoryview:
        """The row of one worker, indexed by Drop, and by TURNS."""
        at = _ROW_WORDS * ROLES.index(role)
        return self.words[at : at + _ROW_WORDS]

    def allow_until(self, at_ms: int) -> None:
        """From this time on, in ms of CLOCK_BOOTTIME, the uplink worker has no key any more; 0: no
        bound. It holds while control is stopped, too."""
        self.words[SEND_UNTIL] = at_ms

    def turns(self, role: str) -> int:
        """How often that worker's loop went round, also before it was restarted."""
        return self.words[_ROW_WORDS * ROLES.index(role) + TURNS]

    def slot(self, slot: int) -> SlotCounters:
        """The counters of a slot, 0 .. SLOTS - 1."""
        at = slot_base(slot)
        return SlotCounters(*self.words[at : at + 14])

    def drops(self) -> dict[str, int]:
        """Packets dropped since the start by cause, both workers together; causes seen only."""
        rows = [self.drops_of(role) for role in ROLES]
        totals = {cause.name.lower(): sum(row[cause] for row in rows) for cause in Drop}
        return {name: count for name, count in totals.items() if count}

    def close(self) -> None:
        """Unmap the memory; nothing may be read afterwards."""
        self.words.release()
        self._map.close()


def total_of(lanes: Sequence[Counters], slot: int) -> SlotCounters:
    """A slot's counters over all lanes: sums, the latest times, and the index of the latest."""
    rows = [lane.slot(slot) for lane in lanes]
    if len(rows) == 1:
        return rows[0]
    latest = max(rows, key=lambda row: row.last_rx_ms)
    same = [row for row in rows if row.last_rx_index == latest.last_rx_index]
    return SlotCounters(
        tx_packets=sum(row.tx_packets for row in rows),
        tx_bytes=sum(row.tx_bytes for row in rows),
        last_tx_ms=max(row.last_tx_ms for row in rows),
        rx_packets=sum(row.rx_packets for row in rows),
        rx_bytes=sum(row.rx_bytes for row in rows),
        last_rx_ms=latest.last_rx_ms,
        last_rx_index=latest.last_rx_index,
        tx_spans=sum(row.tx_spans for row in rows),
        rx_records=sum(row.rx_records for row in same),
        rx_missing=sum(row.rx_missing for row in same),
        peer_records=sum(row.peer_records for row in rows),
        peer_missing=sum(row.peer_missing for row in rows),
        tx_unsent=sum(row.tx_unsent for row in rows),
        peer_unsent=sum(row.peer_unsent for row in rows),
    )


def last_heard(lanes: Sequence[Counters], slot: int) -> tuple[int, int]:
    """When a slot was last heard, in ms of CLOCK_BOOTTIME, and under which receiver index."""
    at = slot_base(slot)
    rows = [(lane.words[at + LAST_RX_MS], lane.words[at + LAST_RX_INDEX]) for lane in lanes]
    return max(rows)


def totals(lanes: Sequence[Counters], slots: int = SLOTS) -> dict[str, int]:
    """What passed through the first slots of all lanes since the start, for every session ever."""
    words = {
        "tx_packets": TX_PACKETS,
        "tx_bytes": TX_BYTES,
        "rx_packets": RX_PACKETS,
        "rx_bytes": RX_BYTES,
    }
    end = _SLOTS_AT + slots * _SLOT_WORDS
    return {
        name: sum(sum(lane.words[_SLOTS_AT + word : end : _SLOT_WORDS]) for lane in lanes)
        for name, word in words.items()
    }


def octets_and_packets(lanes: Sequence[Counters], slot: int) -> tuple[int, int, int, int]:
    """Of a slot over all lanes: bytes sent, bytes received, packets sent, packets received."""
    at, sent, received, packets_sent, packets_received = slot_base(slot), 0, 0, 0, 0
    for lane in lanes:
        words = lane.words
        sent, received = sent + words[at + TX_BYTES], received + words[at + RX_BYTES]
        packets_sent += words[at + TX_PACKETS]
        packets_received += words[at + RX_PACKETS]
    return sent, received, packets_sent, packets_received


def total_drops(lanes: Sequence[Counters]) -> dict[str, int]:
    """Packets dropped since the start by cause, in all lanes together; causes seen only."""
    return dict(sum((Counter(lane.drops()) for lane in lanes), Counter()))


def slot_base(slot: int) -> int:
    """Number of the first word of a slot."""
    if not 0 <= slot < SLOTS:
        raise ValueError(f"slot {slot}: must be 0 to {SLOTS - 1}")
    return _SLOTS_AT + _SLOT_WORDS * slot
