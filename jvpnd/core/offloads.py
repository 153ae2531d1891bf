"""What the TUN device, the UDP sockets and the CPU of this host can do for the data plane."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from jvpnd.core.dataclass import dataclass

FEATURES: Final = ("vnet", "tso", "uso", "udp_gso", "udp_gro", "spans", "aes")
"""Everything that `[debug] disable` can switch off; the data plane works without any of it."""

MISSING: Final = "missing in the kernel"
NO_INSTRUCTIONS: Final = "missing in the CPU"
DISABLED: Final = "disabled by [debug]"


@dataclass(frozen=True, slots=True)
class Offloads:
    """Each flag says that the kernel has the feature and that it is switched on.

    vnet: frames on the TUN carry a 10-byte virtio_net_hdr and may have partial checksums
    (TUN_F_CSUM). tso: TCP super-packets both ways (TUN_F_TSO4|TSO6). uso: UDP super-packets both
    ways (TUN_F_USO4|USO6). udp_gso, udp_gro: UDP_SEGMENT and UDP_GRO on transport sockets. spans:
    records may span datagrams that go out in one send, so not without udp_gso.
    """

    vnet: bool
    tso: bool
    uso: bool
    udp_gso: bool
    udp_gro: bool
    spans: bool = True


def with_implied(disabled: Collection[str]) -> frozenset[str]:
    """Those that are switched off, and those that need one of them."""
    implied = {"vnet": {"tso", "uso"}, "udp_gso": {"spans"}}
    return frozenset(disabled).union(*(implied.get(name, ()) for name in disabled))


def why_off(features: Mapping[str, bool], disabled: Collection[str]) -> dict[str, str]:
    """For each feature that is off: whether the configuration or the host is the reason."""
    reasons = {}
    for name, on in features.items():
        if not on:
            missing = NO_INSTRUCTIONS if name == "aes" else MISSING
            reasons[name] = DISABLED if name in disabled else missing
    return reasons
