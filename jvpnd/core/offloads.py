"""What the TUN device and the UDP sockets of this host can do for the data plane."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Offloads:
    """Each flag says that the kernel has the feature and that it is switched on.

    vnet: frames on the TUN carry a 10-byte virtio_net_hdr and may have partial checksums
    (TUN_F_CSUM). tso: TCP super-packets both ways (TUN_F_TSO4|TSO6). uso: UDP super-packets both
    ways (TUN_F_USO4|USO6). udp_gso, udp_gro: UDP_SEGMENT and UDP_GRO on transport sockets.
    """

    vnet: bool
    tso: bool
    uso: bool
    udp_gso: bool
    udp_gro: bool
