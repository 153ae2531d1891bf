"""Judges what the kernel, the privileges, the libraries and the clock are like."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping
from typing import Final

from jvpnd.core.dataclass import dataclass
from jvpnd.doctor.finding import Finding, fail, ok, warn

# linux/if_tun.h, TUNGETFEATURES
IFF_MULTI_QUEUE: Final = 0x0100
IFF_VNET_HDR: Final = 0x4000
# linux/capability.h: what jvpnd does as root, and then gives up in its workers
CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_STA_UNSYNC: Final = 0x0040  # linux/timex.h
_DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class TunFacts:
    """`error`: the errno of opening /dev/net/tun, 0 for none; `features`: its IFF_ flags."""

    error: int
    features: int = 0


@dataclass(frozen=True, slots=True)
class ClockFacts:
    """`status`: of adjtimex(2), None if it cannot be asked. Times in s since the epoch."""

    status: int | None
    now_s: float
    installed_s: float


def tun_device(facts: TunFacts, lanes: int) -> list[Finding]:
    """The device that all depends on, and what it can do."""
    name = "TUN device"
    if facts.error == errno.ENOENT:
        remedy = "modprobe tun; a container has to be given it"
        return [fail(name, "/dev/net/tun is missing", remedy)]
    if facts.error:
        why = os.strerror(facts.error)
        return [fail(name, f"/dev/net/tun: {why}", "be root; in a container allow the device")]
    found = [ok(name, "/dev/net/tun opens")]
    if not facts.features & IFF_VNET_HDR:
        what = "none: the kernel lacks IFF_VNET_HDR"
        found.append(warn("TUN offloads", what, "a newer kernel is faster"))
    if lanes > 1 and not facts.features & IFF_MULTI_QUEUE:
        remedy = "set lanes = 1, or take a newer kernel"
        found.append(fail("TUN queues", f"one only, and lanes = {lanes}", remedy))
    return found


def udp_offloads(missing: Collection[str]) -> Finding:
    """`missing`: of UDP_SEGMENT and UDP_GRO."""
    if missing:
        return warn("UDP offloads", f"the kernel lacks {', '.join(missing)}", "Linux 5.0 is faster")
    return ok("UDP offloads", "segmentation and receive offload")


def nft(problem: str | None) -> Finding:
    """`problem`: why the nft command is of no use."""
    if problem is None:
        return ok("nftables", "the nft command works")
    return warn(
        "nftables",
        problem,
        "apt install nftables: a full tunnel beside rp_filter = 1 needs it, and so does NAT",
    )


def privileges(effective: int) -> Finding:
    """`effective`: the capabilities of this process, as a bit set."""
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        what = f"this process lacks {', '.join(missing)}"
        return fail("privileges", what, "run jvpnd, and this check, as root (sudo jvpnctl doctor)")
    return ok("privileges", "all that jvpnd needs")


def libraries(needed: Mapping[str, str | None], extras: Mapping[str, str | None]) -> list[Finding]:
    """Why each cannot be imported, None where it can; those of `extras` by the extra's name."""
    broken = [f"{name} ({why})" for name, why in needed.items() if why is not None]
    found = [ok("libraries", "all that are needed")]
    if broken:
        found = [fail("libraries", f"missing: {', '.join(broken)}", "install jvpn again")]
    absent = [name for name, why in extras.items() if why is not None]
    if absent:
        what = f"optional ones are not installed: {', '.join(absent)}"
        found.append(ok("optional libraries", f"{what} (pip install 'jvpn[{','.join(absent)}]')"))
    return found


def clock(facts: ClockFacts) -> Finding:
    """A gateway refuses handshakes older than the last one, and certificates have dates."""
    remedy = "timedatectl set-ntp true (or any other NTP client)"
    if facts.now_s < facts.installed_s - _DAY_S:
        return fail("clock", "it stands before the day on which jvpn was installed", remedy)
    if facts.status is None:
        return warn("clock", "whether it is synchronised cannot be asked", remedy)
    if facts.status & _STA_UNSYNC:
        return warn("clock", "it is not synchronised by NTP", remedy)
    return ok("clock", "synchronised")
