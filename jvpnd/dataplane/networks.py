"""Longest-prefix match over inner addresses, both for routes and for allowed sources."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")
_Lengths = list[tuple[int, dict[int, V]]]


class PrefixTable(Generic[V]):
    """Maps IPv4 (4 bytes) and IPv6 (16 bytes) addresses to a value by their longest prefix.

    Exact addresses are one dictionary look-up; the rest costs one look-up for each distinct
    prefix length in use.
    """

    def __init__(self) -> None:
        self._networks: dict[V, list[tuple[bytes, int]]] = {}
        self._exact: dict[bytes, V] = {}
        self._prefixes: dict[int, _Lengths[V]] = {4: [], 16: []}
        self.everything: V | None = None
        """The value that every address of both families has, if there is one (a client's case)."""

    def set(self, value: V, networks: Sequence[str]) -> None:
        """Replace the networks of `value`; a network belongs to the value that set it last.

        Raises ValueError for anything that is not a network in CIDR notation.
        """
        parsed = [ipaddress.ip_network(text) for text in networks]
        wanted = [(network.network_address.packed, network.prefixlen) for network in parsed]
        self._networks.pop(value, None)
        for other in self._networks.values():
            other[:] = [network for network in other if network not in wanted]
        if wanted:
            self._networks[value] = wanted
        self._rebuild()

    def lookup(self, address: bytes) -> V | None:
        """The value of the longest network that holds `address` (4 or 16 bytes), or None."""
        value = self._exact.get(address)
        if value is not None:
            return value
        number = int.from_bytes(address, "big")
        for shift, table in self._prefixes[len(address)]:
            value = table.get(number >> shift)
            if value is not None:
                return value
        return None

    def _rebuild(self) -> None:
        self._exact = {}
        by_shift: dict[int, dict[int, dict[int, V]]] = {4: {}, 16: {}}
        for value, networks in self._networks.items():
            for packed, length in networks:
                shift = 8 * len(packed) - length
                if shift == 0:
                    self._exact[packed] = value
                    continue
                table = by_shift[len(packed)].setdefault(shift, {})
                table[int.from_bytes(packed, "big") >> shift] = value
        self._prefixes = {size: sorted(tables.items()) for size, tables in by_shift.items()}
        only = next(iter(self._networks)) if len(self._networks) == 1 else None
        both = 32 in by_shift[4] and 128 in by_shift[16]
        self.everything = only if both else None
