"""Longest-prefix match over inner addresses, both for routes and for allowed sources."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")
_Network = tuple[bytes, int]  # address, prefix length
_Tables = dict[int, dict[int, V]]  # by what an address is shifted, for the prefix


class PrefixTable(Generic[V]):
    """Maps IPv4 (4 bytes) and IPv6 (16 bytes) addresses to a value by their longest prefix.

    Exact addresses are one dictionary look-up; the rest costs one look-up for each distinct
    prefix length in use. A change costs as much as what it changes, however large the table is.
    """

    def __init__(self) -> None:
        self._networks: dict[V, dict[_Network, None]] = {}
        self._owners: dict[_Network, V] = {}
        self._exact: dict[bytes, V] = {}
        self._tables: dict[int, _Tables[V]] = {4: {}, 16: {}}
        self._ordered: dict[int, list[tuple[int, dict[int, V]]]] = {4: [], 16: []}
        self.everything: V | None = None
        """The value that every address of both families has, if there is one (a client's case)."""

    def set(self, value: V, networks: Sequence[str]) -> None:
        """Replace the networks of `value`; a network belongs to the value that set it last.

        Raises ValueError for anything that is not a network in CIDR notation.
        """
        parsed = [ipaddress.ip_network(text) for text in networks]
        wanted = {(each.network_address.packed, each.prefixlen): None for each in parsed}
        for network in self._networks.pop(value, {}).keys() - wanted.keys():
            self._remove(network)
        for network in wanted:
            before = self._owners.get(network)
            if before is not None and before != value:
                del self._networks[before][network]
                if not self._networks[before]:
                    del self._networks[before]
            self._insert(network, value)
        if wanted:
            self._networks[value] = wanted
        only = next(iter(self._networks)) if len(self._networks) == 1 else None
        both = 32 in self._tables[4] and 128 in self._tables[16]
        self.everything = only if both else None

    def lookup(self, address: bytes) -> V | None:
        """The value of the longest network that holds `address` (4 or 16 bytes), or None."""
        value = self._exact.get(address)
        if value is not None:
            return value
        number = int.from_bytes(address, "big")
        for shift, table in self._ordered[len(address)]:
            value = table.get(number >> shift)
            if value is not None:
                return value
        return None

    def _insert(self, network: _Network, value: V) -> None:
        packed, length = network
        self._owners[network] = value
        size, shift = len(packed), 8 * len(packed) - length
        if shift == 0:
            self._exact[packed] = value
            return
        tables = self._tables[size]
        if shift not in tables:
            tables[shift] = {}
            self._ordered[size] = sorted(tables.items())
        tables[shift][int.from_bytes(packed, "big") >> shift] = value

    def _remove(self, network: _Network) -> None:
        packed, length = network
        del self._owners[network]
        size, shift = len(packed), 8 * len(packed) - length
        if shift == 0:
            del self._exact[packed]
            return
        tables = self._tables[size]
        del tables[shift][int.from_bytes(packed, "big") >> shift]
        if not tables[shift]:
            del tables[shift]
            self._ordered[size] = sorted(tables.items())
