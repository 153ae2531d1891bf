"""TUN to transports: read, gather or cut, seal, send."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable
from time import monotonic_ns
from typing import Final

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import (
    FRAME,
    FRAME_LEN,
    HEADER_LEN,
    MAX_SUPER_SLICES,
    SAFE_DATAGRAM,
    TAG_LEN,
    Suite,
    datagram_len,
    datagrams_a_send,
)
from jvpnd.dataplane import vnet
from jvpnd.dataplane.counters import (
    PEER_TOLD_MS,
    SEND_UNTIL,
    TURNS,
    Counters,
    Drop,
    clock_ms,
    slot_base,
)
from jvpnd.dataplane.messages import Remote, Report, address_of
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.outlet import Binding, Outlet
from jvpnd.dataplane.pulse import BEAT_S
from jvpnd.dataplane.seal import MAX_RECORD, OVERHEAD, Cut, Sealer
from jvpnd.dataplane.segment import plan_cut, settle_checksum
from jvpnd.dataplane.stream import StreamWriter

MAX_READS: Final = 64  # frames a turn, before commands are looked at again
WAITED_NS: Final = 10_000  # no work for so long: one packet has come, do not look for a second
DEFAULT_MTU: Final = 1280

_TUN_GONE: Final = (errno.EBADFD, errno.EIO, errno.EFAULT)
_V4_DESTINATION = struct.Struct("16x4s")
_V6_DESTINATION = struct.Struct("24x16s")


class Uplink:
    """The state of an uplink worker; its methods named after commands carry them out.

    Packets are read one behind the other into `_plain`, each with room for its frame header in
    front. They stay there as one record of frames until it is full or the TUN is empty.
    """

    def __init__(
        self,
        tun_fd: int,
        offloads: Offloads,
        lane: int,
        counters: Counters,
        report: Callable[[Report], None],
        first: Counters | None = None,
    ) -> None:
        """`first`: lane 0's counters, if this is another one: every peer has that lane, so there it
        tells what holds for all of them."""
        self._tun_fd = tun_fd
        self._offloads = offloads
        self._lane = lane
        self._path_words = (first or counters).words
        self._drops = counters.drops_of("uplink")
        self._head = memoryview(bytearray(vnet.HEADER_LEN if offloads.vnet else 0))
        self._plain = memoryview(bytearray(2 * MAX_RECORD))
        self._record: Binding | None = None  # whom _plain[_begin:_end] is for
        self._begin = self._end = 0
        self._limit = 0  # the longest that it may become
        self._packets = self._octets = 0
        self._outlet = Outlet(counters, offloads.spans, report, self._path_words)
        self._sockets: dict[int, socket.socket] = {}
        self._limits: dict[int, int] = {}  # of those that carry no longer datagrams
        self._writers: dict[int, StreamWriter] = {}  # of those that are streams
        self._ready: dict[int, StreamWriter] = {}  # by descriptor
        self._poll = select.epoll()
        self._bindings: dict[int, Binding] = {}
        self._routes: PrefixTable[int] = PrefixTable()
        self._paused = self._reading = False
        self.set_mtu(DEFAULT_MTU)
        self.commands: dict[str, Callable[..., None]] = {
            "add_socket": self.add_socket,
            "add_stream": self.add_stream,
            "set_limit": self.set_limit,
            "remove_socket": self.remove_socket,
            "bind_send": self.bind_send,
            "release_send": self.release_send,
            "set_routes": self.set_routes,
            "pause": self.pause,
            "set_mtu": self.set_mtu,
        }

    def add_socket(self, fds: list[int], socket_id: int) -> None:
        self.remove_socket(socket_id)
        self._sockets[socket_id] = socket.socket(fileno=fds.pop())

    def add_stream(self, fds: list[int], socket_id: int) -> None:
        """A byte stream, and our end of its feed."""
        self.remove_socket(socket_id)
        stream, feed = (socket.socket(fileno=fd) for fd in fds)
        writer = StreamWriter(stream, feed, self._poll)
        self._sockets[socket_id] = stream
        self._writers[socket_id] = writer
        self._ready |= dict.fromkeys(writer.descriptors(), writer)

    def set_limit(self, socket_id: int, limit: int) -> None:
        """This transport carries datagrams, of at most so many bytes. The peer is told at once:
        it may be the only one that sends, and lose all of it."""
        self._limits[socket_id] = limit
        self._resize()
        for binding in self._bindings.values():
            if binding.socket_id == socket_id:
                self._outlet.tell(binding)

    def _resize(self) -> None:
        for binding in self._bindings.values():
            binding.most = self._datagram_len
            binding.own_limit = self._limits.get(binding.socket_id, 0)
            binding.fit()

    def remove_socket(self, socket_id: int) -> None:
        gone, writer = self._sockets.pop(socket_id, None), self._writers.pop(socket_id, None)
        self._limits.pop(socket_id, None)
        if gone is not None:
            bound = [b.slot for b in self._bindings.values() if b.socket_id == socket_id]
            for slot in bound:
                del self._bindings[slot]
        if writer is not None:
            for fd in writer.descriptors():
                del self._ready[fd]
            writer.close()
        elif gone is not None:
            gone.close()

    def bind_send(
        self,
        slot: int,
        index: int,
        suite: int,
        key: str,
        socket_id: int,
        remote: Remote | None,
        cautious: bool = False,
    ) -> None:
        out = self._sockets[socket_id]
        is_udp = out.family in (socket.AF_INET, socket.AF_INET6) and out.type == socket.SOCK_DGRAM
        self._bindings[slot] = Binding(
            slot=slot,
            counters_at=slot_base(slot),
            sealer=Sealer(Suite(suite), bytes.fromhex(key), index, self._lane),
            socket_id=socket_id,
            socket=out,
            writer=self._writers.get(socket_id),
            address=None if remote is None else address_of(remote),
            datagrams=is_udp or socket_id in self._limits,
            gso=is_udp and self._offloads.udp_gso,
            shared=is_udp,
            limit_told_ms=self._path_words[slot_base(slot) + PEER_TOLD_MS],  # of another binding
            peer_limit=SAFE_DATAGRAM if cautious else 0,
        )
        self._resize()

    def release_send(self, slot: int) -> None:
        self._bindings.pop(slot, None)

    def set_routes(self, slot: int, networks: list[str]) -> None:
        self._routes.set(slot, networks)

    def set_mtu(self, mtu: int) -> None:
        """The TUN's MTU in bytes: what fits into it, sealed, fits into one datagram."""
        size = self._datagram_len = datagram_len(mtu)
        self._span_limit = datagrams_a_send(mtu) * (size - HEADER_LEN) - TAG_LEN
        self._resize()

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def run(self, channel: socket.socket, take_commands: Callable[[], bool]) -> None:
        """Carry packets until control goes away (`take_commands` says so)."""
        poll, channel_fd, tun_fd = self._poll, channel.fileno(), self._tun_fd
        poll.register(channel_fd, select.EPOLLIN)
        done_ns = 0
        while True:
            if self._reading == self._paused:
                self._reading = not self._paused
                if self._reading:
                    poll.register(tun_fd, select.EPOLLIN)
                else:
                    poll.unregister(tun_fd)
            self._drops[TURNS] += 1
            events = poll.poll(BEAT_S)
            if self._ready:  # first: early data must not overtake the request before it
                for fd, _event in events:
                    if (writer := self._ready.get(fd)) is not None:
                        writer.ready()
            for fd, _event in events:
                if fd == tun_fd:
                    waited = monotonic_ns() - done_ns > WAITED_NS
                    self.drain(1 if waited else MAX_READS)
                    done_ns = monotonic_ns()
                elif fd == channel_fd and not take_commands():
                    return

    def drain(self, most: int = MAX_READS) -> None:
        """Carry what the TUN has, at most so many frames, and leave nothing sealed unsent."""
        until_ms = self._drops[SEND_UNTIL]
        if until_ms and clock_ms() >= until_ms:
            self._bindings.clear()  # another gateway may serve these sessions by now
        tun_fd, head, plain = self._tun_fd, self._head, self._plain
        carry, readv, vnet_len = self._carry, os.readv, len(head)
        at = 0
        for _ in range(most):
            try:
                size = readv(tun_fd, (head, plain[at + FRAME_LEN : at + MAX_RECORD]))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _TUN_GONE:
                    raise
                self._paused = True  # control hears of it by netlink; do not spin until then
                break
            at = carry(at, at + FRAME_LEN + size - vnet_len)
        self._seal_record()
        self._outlet.flush()

    def _carry(self, at: int, end: int) -> int:
        """Take the packet behind _plain[at + FRAME_LEN] for the slot that its destination belongs
        to; returns where the next one may go."""
        slot = self._routes.everything
        if slot is None:
            slot = self._slot_for(at + FRAME_LEN, end)
            if slot is None:
                self._drops[Drop.NO_ROUTE] += 1
                return at
        binding = self._bindings.get(slot)
        if binding is None:
            self._drops[Drop.NO_BINDING] += 1
            return at
        flags = 0
        if self._head != vnet.PLAIN and self._offloads.vnet:
            state, gso_type, _, gso_size, csum_start, csum_offset = vnet.HEADER.unpack(self._head)
            if gso_type:
                cut = plan_cut(self._plain[:end], at + FRAME_LEN, gso_type, gso_size, csum_start)
                if cut is None:
                    self._drops[Drop.UNSUPPORTED] += 1
                    return at
                return self._take_super(binding, at, cut)
            if state & vnet.NEEDS_CSUM:
                settled = settle_checksum(
                    self._plain[at + FRAME_LEN : end], csum_start, csum_offset
                )
                if settled is None:
                    self._drops[Drop.MALFORMED] += 1
                    return at
                flags = settled
        return self._append(binding, at, end, flags, 0, 1)

    def _slot_for(self, at: int, end: int) -> int | None:
        version = self._plain[at] >> 4
        if version == 4 and end >= at + 20:
            return self._routes.lookup(_V4_DESTINATION.unpack_from(self._plain, at)[0])
        if version == 6 and end >= at + 40:
            return self._routes.lookup(_V6_DESTINATION.unpack_from(self._plain, at)[0])
        return None

    def _append(
        self,
        binding: Binding,
        at: int,
        end: int,
        flags: int,
        gso_size: int,
        packets: int,
        header_len: int = 0,
    ) -> int:
        """Put what ends at `end` behind the record of frames, or begin another one with it.

        It counts as `packets`, all with a header of `header_len`. Returns as `_carry` does.
        """
        if binding is not self._record or end - self._begin > self._limit:
            self._seal_record()
            self._record, self._begin = binding, at
            if not binding.datagrams:
                self._limit = MAX_RECORD
            elif binding.spans:
                self._limit = self._span_limit
            else:
                self._limit = binding.size - OVERHEAD
        FRAME.pack_into(self._plain, at, flags, end - at - FRAME_LEN, gso_size)
        self._end = end
        self._packets += packets
        self._octets += end - at - FRAME_LEN + (packets - 1) * header_len
        if end <= MAX_RECORD:
            return end
        self._seal_record()
        return 0

    def _take_super(self, binding: Binding, at: int, cut: Cut) -> int:
        """Send a super-packet whole where a lost datagram is not to be feared, else in slices."""
        whole = not binding.datagrams or (
            binding.spans and cut.end - at <= self._span_limit
        )
        if whole and cut.count <= MAX_SUPER_SLICES:
            return self._append(
                binding, at, cut.end, 0, cut.gso_size, cut.count, len(cut.header)
            )
        self._seal_record()
        self._outlet.send_slices(binding, self._plain, cut)
        return 0

    def _seal_record(self) -> None:
        """Hand on the record of frames, if there is one."""
        binding, self._record = self._record, None
        if binding is not None:
            plain = self._plain[self._begin : self._end]
            packets, octets = self._packets, self._octets
            self._packets = self._octets = 0
            self._outlet.send_record(binding, plain, packets, octets)
