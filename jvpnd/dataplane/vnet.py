"""struct virtio_net_hdr as a TUN with IFF_VNET_HDR carries it (include/uapi/linux/virtio_net.h)."""

from __future__ import annotations

import struct
from typing import Final

HEADER = struct.Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; offsets from the IP header."""
HEADER_LEN: Final = HEADER.size

NEEDS_CSUM: Final = 1
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_TCPV6: Final = 4
GSO_UDP_L4: Final = 5
GSO_ECN: Final = 0x80

PLAIN: Final = bytes(HEADER_LEN)
"""The header of a packet whose checksums are complete."""
