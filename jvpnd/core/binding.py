"""A client's hold on its keys: the current epoch, and old ones that still drain."""

from __future__ import annotations

from jvpnd.core.channel import ControlChannel
from jvpnd.core.dataclass import dataclass
from jvpnd.core.effects import BindReceive, BindSend, Effect, ReleaseReceive, ReleaseSend
from jvpnd.core.handshake import EpochKeys
from jvpnd.core.wire import SealedHeader, Suite


@dataclass(slots=True)
class _Draining:
    channel: ControlChannel
    until_ms: float | None  # None: until the peer is heard under the new epoch


class Binding:
    """Installs epochs in the data plane, one for sending at any time, and retires old ones."""

    def __init__(
        self, session_id: bytes, suite: Suite, effects: list[Effect], used_epoch: int = 0
    ) -> None:
        """`used_epoch`: no key of it, nor of any before, may send."""
        self._session_id = session_id
        self._suite = suite
        self._effects = effects
        self._draining: list[_Draining] = []
        self._keys: EpochKeys | None = None
        self._sending_epoch = used_epoch
        self._move_to: str | None = None  # path to send on, once the peer uses the current epoch
        self.channel: ControlChannel | None = None

    @property
    def index(self) -> int:
        """Receiver index of the current epoch, 0 if there is none."""
        return self._keys.index if self._keys else 0

    @property
    def awaits_peer(self) -> bool:
        """Whether the peer has yet to be heard under the current epoch, which it may not know."""
        return any(old.until_ms is None for old in self._draining)

    def send_under(self, epoch: int, index: int, key: bytes, path_id: str) -> None:
        """Send DATA under this epoch over this path from now on (early data may be first)."""
        if epoch > self._sending_epoch:
            self._sending_epoch = epoch
            self._effects.append(BindSend(self._session_id, index, self._suite, key, path_id))

    def adopt(self, keys: EpochKeys, path_id: str, drain_until_ms: float | None) -> None:
        """Make this the current epoch; the one before is received until it has drained.

        Without `drain_until_ms` the peer has yet to confirm the epoch: till then sending goes on
        under the one before, if there is one, so that nothing comes before its key.
        """
        first = self.channel is None
        if self.channel is not None:
            self._draining.append(_Draining(self.channel, drain_until_ms))
        self._keys, self.channel = keys, keys.channel()
        self._effects.append(
            BindReceive(self._session_id, keys.index, self._suite, keys.receive.data, path_id)
        )
        if drain_until_ms is None and not first:
            self._move_to = path_id
        else:
            self._send_current(path_id)

    def _send_current(self, path_id: str) -> None:
        keys, self._move_to = self._keys, None
        if keys is not None:
            self.send_under(keys.epoch, keys.peer_index, keys.send.data, path_id)

    def open(self, packet: bytes, header: SealedHeader, drain_until_ms: float) -> bytes | None:
        """The body of a CONTROL packet of the current epoch or of one that drains."""
        if self.channel is not None and header.index == self.channel.index:
            body = self.channel.open(packet, header)
            if body is not None:
                self.peer_has_moved(drain_until_ms)
            return body
        for old in self._draining:
            if header.index == old.channel.index:
                return old.channel.open(packet, header)
        return None

    def peer_has_moved(self, drain_until_ms: float) -> None:
        """The peer uses the current epoch: send under it, and let the one before drain."""
        if self._move_to is not None:
            self._send_current(self._move_to)
        for old in self._draining:
            if old.until_ms is None:
                old.until_ms = drain_until_ms

    def stop_sending(self) -> None:
        self._effects.append(ReleaseSend(self._session_id))

    def expire(self, now_ms: float) -> None:
        """Release old epochs whose drain is over."""
        for old in [o for o in self._draining if o.until_ms is not None and o.until_ms <= now_ms]:
            self._effects.append(ReleaseReceive(old.channel.index))
            self._draining.remove(old)

    def next_ms(self) -> float | None:
        return min((o.until_ms for o in self._draining if o.until_ms is not None), default=None)

    def release(self) -> None:
        """Forget everything: the session is over."""
        self._effects.append(ReleaseSend(self._session_id))
        for old in self._draining:
            self._effects.append(ReleaseReceive(old.channel.index))
        if self._keys is not None:
            self._effects.append(ReleaseReceive(self._keys.index))
        self._draining.clear()
        self._keys = self.channel = None
