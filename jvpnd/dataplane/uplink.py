"""TUN to transports: read, cut, seal, send."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jvpnd.core.offloads import Offloads
from jvpnd.core.wire import Suite
from jvpnd.dataplane import vnet
from jvpnd.dataplane.counters import (
    LAST_TX_MS,
    TX_BYTES,
    TX_PACKETS,
    Counters,
    Drop,
    monotonic_ms,
    slot_base,
)
from jvpnd.dataplane.messages import Remote, Report, ReportKind, address_of
from jvpnd.dataplane.networks import PrefixTable
from jvpnd.dataplane.seal import FLAGS_LEN, OVERHEAD, SEGMENT_PREFIX_LEN, Cut, Sealer
from jvpnd.dataplane.segment import plan_cut, settle_checksum

MAX_READS: Final = 32  # frames a turn, before commands are looked at again
MAX_SEGMENTS: Final = 64  # UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT
MAX_SEND: Final = 65507  # payload of the longest UDP datagram, so of one GSO send too
SEND_WAIT_MS: Final = 10
ERROR_EVERY_MS: Final = 10

_UDP_SEGMENT: Final = 103  # linux/udp.h
_FRAME_AT: Final = 16  # room for the vnet header and for a segment's prefix
_GSO_REFUSED: Final = (errno.EIO, errno.EINVAL, errno.EMSGSIZE)
_TUN_GONE: Final = (errno.EBADFD, errno.EIO, errno.EFAULT)
_U16 = struct.Struct("=H")


@dataclass(slots=True, eq=False)
class _Binding:
    """The one way out of a slot."""

    slot: int
    counters_at: int
    sealer: Sealer
    socket_id: int
    socket: socket.socket
    address: Any  # None where the socket is connected
    gso: bool
    next_error_ms: int = 0

    def send(self, data: memoryview, ancillary: Sequence[Any] = ()) -> None:
        if self.address is None:
            self.socket.sendmsg((data,), ancillary)
        else:
            self.socket.sendmsg((data,), ancillary, 0, self.address)


class _Batch:
    """Datagrams sealed for one binding that go out in one send, all `stride` bytes long but the
    last, which may be shorter."""

    __slots__ = ("binding", "count", "end", "memory", "octets", "stride")

    def __init__(self) -> None:
        self.memory = memoryview(bytearray(MAX_SEND))
        self.binding: _Binding | None = None
        self.stride = 0
        self.clear()

    def clear(self) -> None:
        self.count = 0
        self.end = 0
        self.octets = 0

    def room(self, binding: _Binding, size: int) -> int:
        """How many datagrams of `size` can be put behind those that are here."""
        if self.count == 0:
            self.binding = binding
            self.stride = size
        elif binding is not self.binding or size != self.stride:
            return 0
        return min(MAX_SEGMENTS - self.count, (MAX_SEND - self.end) // size)


class Uplink:
    """The state of an uplink worker; its methods named after commands carry them out."""

    def __init__(
        self,
        tun_fd: int,
        offloads: Offloads,
        lane: int,
        counters: Counters,
        report: Callable[[Report], None],
    ) -> None:
        self._tun_fd = tun_fd
        self._offloads = offloads
        self._lane = lane
        self._report = report
        self._words = counters.words
        self._drops = counters.drops_of("uplink")
        self._frame = memoryview(bytearray(_FRAME_AT + 65536 + 64))
        self._batch = _Batch()
        self._sockets: dict[int, socket.socket] = {}
        self._bindings: dict[int, _Binding] = {}
        self._routes: PrefixTable[int] = PrefixTable()
        self._mtu = 1280
        self._paused = False
        self.commands: dict[str, Callable[..., None]] = {
            "add_socket": self.add_socket,
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

    def remove_socket(self, socket_id: int) -> None:
        gone = self._sockets.pop(socket_id, None)
        if gone is not None:
            bound = [b.slot for b in self._bindings.values() if b.socket_id == socket_id]
            for slot in bound:
                del self._bindings[slot]
            gone.close()

    def bind_send(
        self, slot: int, index: int, suite: int, key: str, socket_id: int, remote: Remote | None
    ) -> None:
        out = self._sockets[socket_id]
        is_udp = out.family in (socket.AF_INET, socket.AF_INET6) and out.type == socket.SOCK_DGRAM
        self._bindings[slot] = _Binding(
            slot=slot,
            counters_at=slot_base(slot),
            sealer=Sealer(Suite(suite), bytes.fromhex(key), index, self._lane),
            socket_id=socket_id,
            socket=out,
            address=None if remote is None else address_of(remote),
            gso=is_udp and self._offloads.udp_gso,
        )

    def release_send(self, slot: int) -> None:
        self._bindings.pop(slot, None)

    def set_routes(self, slot: int, networks: list[str]) -> None:
        self._routes.set(slot, networks)

    def set_mtu(self, mtu: int) -> None:
        """The TUN's MTU in bytes: what fits into it, sealed, fits into one datagram."""
        self._mtu = mtu

    def pause(self, paused: bool) -> None:
        self._paused = paused

    def run(self, channel: socket.socket, take_commands: Callable[[], bool]) -> None:
        """Carry packets until control goes away (`take_commands` says so)."""
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        reading = False
        while True:
            if reading == self._paused:
                reading = not self._paused
                if reading:
                    poll.register(self._tun_fd, select.POLLIN)
                else:
                    poll.unregister(self._tun_fd)
            ready = [fd for fd, _events in poll.poll()]
            if channel.fileno() in ready and not take_commands():
                return
            if self._tun_fd in ready and not self._paused:
                self.drain()

    def drain(self) -> None:
        """Carry what the TUN has, at most MAX_READS frames, and leave nothing sealed unsent."""
        vnet_len = vnet.HEADER_LEN if self._offloads.vnet else 0
        into = [self._frame[_FRAME_AT - vnet_len :]]
        tun_fd, carry = self._tun_fd, self._carry
        for _ in range(MAX_READS):
            try:
                size = os.readv(tun_fd, into)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno not in _TUN_GONE:
                    raise
                self._paused = True  # control hears of it by netlink; do not spin until then
                break
            carry(_FRAME_AT + size - vnet_len)
        if self._batch.count:
            self._flush()

    def _carry(self, end: int) -> None:
        """Seal the packet at frame[_FRAME_AT:end] for the slot that its destination belongs to."""
        slot = self._routes.everything
        if slot is None:
            slot = self._slot_for(end)
            if slot is None:
                self._drops[Drop.NO_ROUTE] += 1
                return
        binding = self._bindings.get(slot)
        if binding is None:
            self._drops[Drop.NO_BINDING] += 1
            return
        flags = 0
        if self._offloads.vnet:
            state, gso_type, _, gso_size, csum_start, csum_offset = vnet.HEADER.unpack_from(
                self._frame, _FRAME_AT - vnet.HEADER_LEN
            )
            if gso_type:
                cut = plan_cut(self._frame[:end], _FRAME_AT, gso_type, gso_size, csum_start)
                if cut is None:
                    self._drops[Drop.UNSUPPORTED] += 1
                else:
                    self._send_cut(binding, cut)
                return
            if state & vnet.NEEDS_CSUM:
                settled = settle_checksum(self._frame[_FRAME_AT:end], csum_start, csum_offset)
                if settled is None:
                    self._drops[Drop.MALFORMED] += 1
                    return
                flags = settled
        self._send_packet(binding, flags, end)

    def _slot_for(self, end: int) -> int | None:
        frame = self._frame
        version = frame[_FRAME_AT] >> 4
        if version == 4 and end >= _FRAME_AT + 20:
            return self._routes.lookup(bytes(frame[_FRAME_AT + 16 : _FRAME_AT + 20]))
        if version == 6 and end >= _FRAME_AT + 40:
            return self._routes.lookup(bytes(frame[_FRAME_AT + 24 : _FRAME_AT + 40]))
        return None

    def _send_packet(self, binding: _Binding, flags: int, end: int) -> None:
        batch = self._batch
        plain = _FRAME_AT - FLAGS_LEN
        size = end - plain + OVERHEAD
        if batch.room(binding, size) <= 0 and not self._make_room(binding, size):
            return
        self._frame[plain] = flags
        batch.end = binding.sealer.seal(self._frame[plain:end], batch.memory, batch.end)
        batch.count += 1
        batch.octets += end - _FRAME_AT

    def _send_cut(self, binding: _Binding, cut: Cut) -> None:
        batch = self._batch
        per_packet = SEGMENT_PREFIX_LEN + OVERHEAD
        size = len(cut.header) + cut.gso_size + per_packet
        first = 0
        while first < cut.count:
            room = batch.room(binding, size)
            if room <= 0:
                if not self._make_room(binding, size):
                    return
                continue
            stop = min(first + room, cut.count)
            begin = batch.end
            batch.end = binding.sealer.seal_segments(
                self._frame, cut, first, stop, batch.memory, begin
            )
            batch.count += stop - first
            batch.octets += batch.end - begin - (stop - first) * per_packet
            first = stop
        if batch.end % batch.stride:  # the last slice was a short one: nothing may follow it
            self._flush()

    def _make_room(self, binding: _Binding, size: int) -> bool:
        """Send what waits; False if a datagram of that size cannot be sent at all."""
        if self._batch.count:
            self._flush()
        if self._batch.room(binding, size) > 0:
            return True
        self._drops[Drop.TOO_BIG] += 1
        return False

    def _flush(self) -> None:
        """Send the batch: in one go where the kernel cuts it for us, else one by one."""
        batch = self._batch
        binding = batch.binding
        assert binding is not None
        count, octets, data = batch.count, batch.octets, batch.memory[: batch.end]
        batch.clear()
        now_ms = monotonic_ms()
        if count > 1 and binding.gso:
            segment = (socket.SOL_UDP, _UDP_SEGMENT, _U16.pack(batch.stride))
            error = self._try_send(binding, data, (segment,))
            if error in _GSO_REFUSED:
                binding.gso = False  # the path's MTU, or the device behind it, rules it out
            else:
                self._account(binding, count, octets, now_ms, error)
                return
        inner = octets // count
        for at in range(0, len(data), batch.stride):
            error = self._try_send(binding, data[at : at + batch.stride])
            count -= 1
            share = inner if count else octets  # so that the shares add up to what was sent
            octets -= share
            self._account(binding, 1, share, now_ms, error)

    def _try_send(
        self, binding: _Binding, data: memoryview, ancillary: Sequence[Any] = ()
    ) -> int:
        """errno of the send, 0 if it went out. Waits once, and briefly, for a full socket."""
        try:
            try:
                binding.send(data, ancillary)
            except BlockingIOError:
                poll = select.poll()
                poll.register(binding.socket, select.POLLOUT)
                poll.poll(SEND_WAIT_MS)
                binding.send(data, ancillary)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def _account(
        self, binding: _Binding, count: int, octets: int, now_ms: int, error: int
    ) -> None:
        if not error:
            words, at = self._words, binding.counters_at
            words[at + TX_PACKETS] += count
            words[at + TX_BYTES] += octets
            words[at + LAST_TX_MS] = now_ms
        elif error in (errno.EAGAIN, errno.ENOBUFS):
            self._drops[Drop.SEND_BUFFER] += count
        else:
            self._drops[Drop.SEND_ERROR] += count
            if now_ms >= binding.next_error_ms:
                binding.next_error_ms = now_ms + ERROR_EVERY_MS
                self._report(Report(ReportKind.SEND_ERROR, binding.slot, error))
