"""Addresses, routes, policy rules and forwarding of one tunnel interface.

Everything here can be repeated and put back. We touch only what is ours: rules and routes with our
protocol number, our own table, our own interface, and sysctls whose old value is on file.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Collection, Sequence
from pathlib import Path
from socket import AF_INET, AF_INET6

from jvpnd.core.wire import datagrams_a_send
from jvpnd.net import apply, hostroutes, nft
from jvpnd.net.errors import MissingFeature
from jvpnd.net.forwarding import Forwarder
from jvpnd.net.forwardplan import Forwarding
from jvpnd.net.hoststate import HostState, read_sysctl, write_sysctl
from jvpnd.net.routeplan import Mode, Plan, fwmark_of, plan
from jvpnd.net.tun import remove_left

__all__ = ["HostNetwork", "Mode", "fwmark_of"]

_log = logging.getLogger(__name__)

_STATE_FILE = "network.json"
_SRC_VALID_MARK = "net/ipv4/conf/all/src_valid_mark"
_MIN_MTU_IPV6 = 1280  # RFC 8200, section 5


class HostNetwork:
    """The host's side of one TUN. Claim its name first: nobody else changes the same things.

    Call `resume` once, then `configure` and `route` as often as the session changes (in this
    order), one at a time; `remove` undoes all. What cannot be done on this host, but need not stop
    the tunnel, comes back as sentences for the log and the status.
    """

    def __init__(self, name: str, runtime_dir: Path) -> None:
        self._name = name
        self._state = HostState(runtime_dir / _STATE_FILE)
        self._forwarder = Forwarder(self._state)
        self._inner: set[int] = set()  # families with an inner address

    @property
    def fwmark(self) -> int:
        """The mark that the transport sockets need."""
        return fwmark_of(self._name)

    async def resume(self) -> None:
        """Go on from what a killed run left. Under this name it stays, until `configure` and
        `route` say what it has to be; under the name that the interface had then it goes."""
        self._state.load()
        left = self._state.interface
        if left is not None and left != self._name:
            apply.apply_plan(left, Plan())
            remove_left(left)
            await self._remove_filter()
            await self._forwarder.remove(left)
            await self._remove_lent()
            self._state.restore_sysctls()
            self._state.forget()

    @property
    def is_left(self) -> bool:
        """Whether a killed run had this interface."""
        return self._state.interface == self._name

    async def configure(self, addresses: Sequence[str], mtu: int) -> tuple[str, ...]:
        """Give the interface exactly these addresses (CIDR) and this MTU, and set it up.

        Call `route` after it: IPv4 routes may go with the last IPv4 address.
        """
        self._state.note(self._name, filtered=self._state.filtered)
        wanted = {ipaddress.ip_interface(text) for text in addresses}
        notes: tuple[str, ...] = ()
        index = socket.if_nametoindex(self._name)
        # So that what TCP hands over at once also leaves at once, in one send.
        apply.set_sizes(index, mtu, datagrams_a_send(mtu))
        _set_own(self._name)
        apply.set_up(index, True)
        usable = wanted if _has_ipv6(self._name) else {a for a in wanted if a.version == 4}
        if usable != wanted:
            low = f"an MTU of {mtu} is below its minimum of {_MIN_MTU_IPV6}"
            why = low if mtu < _MIN_MTU_IPV6 else "it is disabled on this host"
            notes = (f"no IPv6 in the tunnel, {_join(wanted - usable)} left out: {why}",)
        apply.set_addresses(index, usable)
        self._inner = {AF_INET if each.version == 4 else AF_INET6 for each in usable}
        return _logged(notes)

    async def route(
        self, mode: Mode, networks: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Make the routes those of `mode`; `networks` (CIDR) are those of a split tunnel, `exclude`
        those outside a full one.

        Raises ValueError for a default route in split mode and MissingFeature where a full tunnel
        needs a sysctl that cannot be set.
        """
        families = apply.host_families()
        if mode == "split" and not _has_ipv6(self._name):
            families = [AF_INET]
        wanted = plan(
            self._name, mode, networks, exclude=exclude, inner=self._inner, families=families
        )
        notes = _left_out(networks, families) if mode == "split" else ()
        if mode == "full":
            self._state.set_sysctl(_SRC_VALID_MARK, "1")
            notes += await self._pass_reverse_path()
        notes += apply.apply_plan(self._name, wanted)
        if self._state.lent:  # by a run that was a node of a cluster
            await self._remove_lent()
            self._state.note_owned(self._name, self._state.neighbours, ())
        if mode != "full":
            await self._remove_filter()
            self._state.restore_sysctls(_SRC_VALID_MARK)
        return _logged(notes)

    def enable_forwarding(self) -> None:
        """Let the host forward, both versions; `remove`, or the next start, puts it back.

        Interfaces that learn their own IPv6 default route from router advertisements keep it
        (accept_ra = 2; a forwarding host would ignore them). Clients are not told to reach each
        other directly, which they cannot; other interfaces keep their own send_redirects. Raises
        MissingFeature.
        """
        self._state.keep_sysctl("net/ipv4/conf/all/accept_redirects")  # ip_forward resets it
        self._state.set_sysctl("net/ipv4/ip_forward", "1")
        for each in sorted(Path("/proc/sys/net/ipv6/conf").glob("*/accept_ra")):
            if each.parent.name not in ("all", self._name) and each.read_text().strip() == "1":
                self._state.set_sysctl(f"net/ipv6/conf/{each.parent.name}/accept_ra", "2")
        if read_sysctl("net/ipv6/conf/all/forwarding") is not None:
            self._state.set_sysctl("net/ipv6/conf/all/forwarding", "1")
        try:
            self._state.set_sysctl("net/ipv4/conf/all/send_redirects", "0")  # overrides all others
        except MissingFeature as error:  # a nuisance, no more
            _log.warning("%s", error)

    async def forward(
        self, settings: Forwarding, own: Sequence[str], clients: Sequence[str]
    ) -> tuple[str, ...]:
        """What a gateway does between the tunnel and other interfaces; again whenever settings,
        the tunnel's `own` addresses (CIDR) or the `clients`' addresses change.

        May come before `configure`, so that nothing is forwarded before it holds. Raises
        MissingFeature where a setting that must hold cannot be made to.
        """
        return _logged(await self._forwarder.apply(self._name, settings, own, clients))

    @property
    def state(self) -> HostState:
        """What has to be put back; for OwnedAddresses, which takes the place of `route` at a node
        of a cluster."""
        return self._state

    async def remove(self) -> None:
        """Undo everything: routes, rules, addresses, sysctls. The TUN may be gone already."""
        apply.apply_plan(self._name, Plan())
        index = apply.index_of(self._name)
        if index is not None:
            apply.set_addresses(index, set())
            apply.set_up(index, False)
        await self._remove_filter()
        await self._forwarder.remove(self._name)
        await self._remove_lent()
        self._state.restore_sysctls()
        self._state.forget()
        self._inner = set()

    async def _pass_reverse_path(self) -> tuple[str, ...]:
        """Where a strict reverse-path filter would drop the transport's packets, exempt them."""
        if not _strict_reverse_path():
            return ()
        self._state.note(self._name, filtered=True)
        problem = await nft.load(nft.reverse_path_marks(self._name))
        if problem is None:
            return ()
        return (
            "rp_filter = 1 will drop the tunnel's own packets: set net.ipv4.conf.*.rp_filter to 2, "
            f"or mend this: {problem}",
        )

    async def _remove_lent(self) -> None:
        """Routes to other nodes of a cluster, which go by themselves with no interface of ours."""
        if self._state.lent:
            await asyncio.to_thread(hostroutes.remove_left, self._state.lent)

    async def _remove_filter(self) -> None:
        if self._state.filtered:
            name = self._state.interface or self._name
            problem = await nft.load(nft.without_table(name))
            if problem is not None:
                _log.warning("cannot remove the nft table of %s: %s", name, problem)
            self._state.note(name, filtered=False)


def _set_own(name: str) -> None:
    """Sysctls of the TUN itself, which go with it."""
    for key, value in (
        ("ipv4/conf/{}/promote_secondaries", "1"),  # the old address goes, the new one stays
        ("ipv4/conf/{}/send_redirects", "0"),
        ("ipv6/conf/{}/addr_gen_mode", "1"),  # no link-local address, no router solicitations
        ("ipv6/conf/{}/accept_ra", "0"),
    ):
        key = "net/" + key.format(name)
        if read_sysctl(key) in (None, value):
            continue
        try:
            write_sysctl(key, value)
        except OSError as error:
            _log.info("cannot set the sysctl %s: %s", key, error)


def _has_ipv6(name: str) -> bool:
    """Whether the interface does IPv6: not with a small MTU, nor where it is disabled."""
    return read_sysctl(f"net/ipv6/conf/{name}/disable_ipv6") == "0"


def _strict_reverse_path() -> bool:
    """Whether some interface, or one that comes later, filters strictly (the maximum counts)."""
    values = Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter")
    return "1" in {each.read_text().strip() for each in values}


def _left_out(networks: Sequence[str], families: Collection[int]) -> tuple[str, ...]:
    parsed = [ipaddress.ip_network(text, strict=False) for text in networks]
    out = [each for each in parsed if each.version == 6 and AF_INET6 not in families]
    return (f"no route to {_join(out)}: the tunnel has no IPv6",) if out else ()


def _join(items: Collection[object]) -> str:
    return ", ".join(sorted(str(each) for each in items))


def _logged(notes: tuple[str, ...]) -> tuple[str, ...]:
    for note in notes:
        _log.warning("%s", note)
    return notes
