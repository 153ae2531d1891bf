"""The TUN device: opened with a virtio_net_hdr and every offload the kernel grants, or with less.

Constants: linux/if_tun.h, linux/udp.h. A daemon *claims* the name first, so that a second one fails
at once. Its device outlives it, with addresses and routes, if it is killed (`set_persistent`), and
the next one takes it over.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Collection, Sequence

import pytun

from jvpnd.core.dataclass import dataclass
from jvpnd.core.offloads import Offloads
from jvpnd.net.errors import MissingFeature

MAX_NAME_LEN = 15  # IFNAMSIZ less the final zero

_TUNSETIFF = 0x400454CA
_TUNSETOFFLOAD = 0x400454D0
_TUNSETPERSIST = 0x400454CB
_TUNGETIFF = 0x800454D2
_IFREQ = struct.Struct("16sH22x")
_TUN_F_CSUM = 0x01
_TUN_F_TSO4 = 0x02
_TUN_F_TSO6 = 0x04
_TUN_F_USO4 = 0x20
_TUN_F_USO6 = 0x40
_TSO = _TUN_F_TSO4 | _TUN_F_TSO6
_USO = _TUN_F_USO4 | _TUN_F_USO6

_SOL_UDP = socket.IPPROTO_UDP
_UDP_SEGMENT = 103
_UDP_GRO = 104

_BUSY_S = 2.0  # workers of a daemon that was killed end by themselves
_BUSY_STEP_S = 0.02

_PLAIN: int = pytun.IFF_TUN | pytun.IFF_NO_PI
_VNET: int = pytun.IFF_VNET_HDR


@dataclass(frozen=True, slots=True)
class Tun:
    """An open TUN device. Closing `fd` (and every copy of it) removes the device, if it is not
    persistent."""

    fd: int  # non-blocking; with offloads.vnet each packet is behind a virtio_net_hdr of 10 bytes
    name: str
    index: int
    offloads: Offloads


def claim(name: str) -> socket.socket:
    """Make the name ours in this network namespace, until the socket is closed.

    Raises MissingFeature if another daemon has it.
    """
    _check_name(name)
    held = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        held.bind(f"\0jvpn/{name}")  # abstract: goes with the process, however that ends
    except OSError as error:
        held.close()
        raise _explain(name, OSError(errno.EBUSY, error.strerror)) from error
    return held


def open_tun(
    name: str,
    *,
    multi_queue: bool = False,
    disabled: Collection[str] = frozenset(),
    ours: bool = False,
) -> Tun:
    """Create the TUN device `name`, down and without addresses; or take over the one that is there,
    if it is `ours`, as it is.

    With `multi_queue`, `add_queue` opens further descriptors of the same device. The features of
    Offloads named in `disabled` are not asked for. Raises MissingFeature, naming what to do, for a
    bad or busy name, a missing /dev/net/tun or privilege.
    """
    _check_name(name)
    flags = _PLAIN | (pytun.IFF_MULTI_QUEUE if multi_queue else 0)
    if ours:
        _let_go(name, flags ^ pytun.IFF_MULTI_QUEUE)
    elif multi_queue:
        flags |= pytun.IFF_TUN_EXCL
    fd, vnet = _create(name, flags, wants_vnet="vnet" not in disabled)
    return tun_of(fd, name, vnet, disabled)


def tun_of(fd: int, name: str, vnet: bool, disabled: Collection[str] = frozenset()) -> Tun:
    """An open descriptor of a TUN device, with all offloads that are granted."""
    os.set_blocking(fd, False)
    tso, uso = _enable_offloads(fd, disabled) if vnet else (False, False)
    udp_gso, udp_gro = _probe_udp()
    udp_gso = udp_gso and "udp_gso" not in disabled
    offloads = Offloads(
        vnet=vnet,
        tso=tso,
        uso=uso,
        udp_gso=udp_gso,
        udp_gro=udp_gro and "udp_gro" not in disabled,
        spans=udp_gso and "spans" not in disabled,
    )
    return Tun(fd, name, socket.if_nametoindex(name), offloads)


def set_persistent(tun: Tun, on: bool) -> None:
    """Whether the device stays when the last descriptor is closed."""
    fcntl.ioctl(tun.fd, _TUNSETPERSIST, int(on))


def inherited_tun(
    fds: Sequence[int], name: str, lanes: int, disabled: Collection[str] = frozenset()
) -> Tun | None:
    """The TUN that somebody kept for us: one descriptor a lane, or None if it is not what we need.
    What waits in its queues is still there."""
    if len(fds) != lanes:
        return None
    for fd in fds:
        try:
            held, granted = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
        except OSError:  # no TUN, or one whose device is gone
            return None
        several, vnet = bool(granted & pytun.IFF_MULTI_QUEUE), bool(granted & _VNET)
        if held.rstrip(b"\0") != name.encode() or several != (lanes > 1):
            return None
        if vnet != ("vnet" not in disabled):
            return None
        os.set_blocking(fd, False)
    return tun_of(fds[0], name, vnet, disabled)


def remove_left(name: str) -> None:
    """Remove the device that a killed daemon of ours left; one that is in use stays."""
    try:
        held = claim(name)
    except MissingFeature:
        return
    with held:
        for flags in (_PLAIN, _PLAIN | pytun.IFF_MULTI_QUEUE):
            _let_go(name, flags)


def _let_go(name: str, flags: int) -> None:
    """Make a device of this kind go, if nobody has it open."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(fd, _TUNSETPERSIST, 0)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBUSY):  # of another kind, or in use
            raise _explain(name, error) from error
    finally:
        os.close(fd)


def add_queue(tun: Tun) -> int:
    """One more non-blocking descriptor of a multi-queue device, for one more lane."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = _PLAIN | pytun.IFF_MULTI_QUEUE | (_VNET if tun.offloads.vnet else 0)
        request = _IFREQ.pack(tun.name.encode(), flags)
        fcntl.ioctl(fd, _TUNSETIFF, request)
    except OSError as error:
        os.close(fd)
        raise _explain(tun.name, error) from error
    return fd


def _create(name: str, flags: int, wants_vnet: bool) -> tuple[int, bool]:
    """A descriptor of the new device, and whether it has virtio_net_hdrs.

    A kernel may refuse flags that it does not know (EINVAL), or ignore them.
    """
    try:
        device = _attach(name, flags | (_VNET if wants_vnet else 0))
    except (pytun.Error, OSError) as error:
        if wants_vnet and _errno(error) == errno.EINVAL:
            return _create(name, flags, False)
        raise _explain(name, error) from error
    try:
        fd = os.dup(device.fileno())  # pytun closes its own when collected
    finally:
        device.close()
    granted = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))[1]
    return fd, bool(granted & _VNET)


def _attach(name: str, flags: int) -> pytun.TunTapDevice:
    until = time.monotonic() + _BUSY_S
    while True:
        try:
            return pytun.TunTapDevice(name=name, flags=flags)
        except (pytun.Error, OSError) as error:
            if _errno(error) != errno.EBUSY or time.monotonic() > until:
                raise
            time.sleep(_BUSY_STEP_S)


def _check_name(name: str) -> None:
    # dev_valid_name() in net/core/dev.c; "%" is a pattern there ("tun%d")
    bad = not name.isascii() or not name.isprintable() or any(c in "/:% " for c in name)
    if bad or name in ("", ".", "..", "all", "default") or len(name) > MAX_NAME_LEN:
        raise MissingFeature(
            f"interface name {name!r} is not allowed: 1 to {MAX_NAME_LEN} printable ASCII "
            "characters without space, '/', ':' or '%', and not '.', '..', 'all' or 'default'"
        )


def _explain(name: str, error: Exception) -> MissingFeature:
    """What to do about a failed open, from the errno that pytun or the ioctl gave."""
    code = _errno(error)
    if code in (errno.EPERM, errno.EACCES):
        return MissingFeature(
            f"no permission to create the TUN device {name}: run as root or grant CAP_NET_ADMIN"
        )
    if code in (errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ENOTTY):
        return MissingFeature(
            "/dev/net/tun is missing or no TUN device: load the tun module (modprobe tun), or pass "
            "the device into the container"
        )
    if code == errno.EBUSY:
        return MissingFeature(
            f"interface {name} is in use by another program: stop it or choose another "
            "[interface] name"
        )
    if code == errno.EINVAL:
        return MissingFeature(
            f"interface {name} exists already and is not a TUN device that can be shared: remove "
            "it or choose another [interface] name"
        )
    return MissingFeature(f"cannot create the TUN device {name}: {error}")


def _errno(error: Exception) -> int:
    """pytun.Error has the errno where OSError has it, but is none."""
    code = error.args[0] if error.args else 0
    return code if isinstance(code, int) else 0


def _enable_offloads(fd: int, disabled: Collection[str]) -> tuple[bool, bool]:
    """Ask for everything that is wanted, then for less; (tso, uso) as granted.

    USO came with Linux 6.2. Where not even TUN_F_CSUM is granted none are on from the start.
    """
    tso = 0 if "tso" in disabled else _TSO
    uso = 0 if "uso" in disabled else _USO
    for wanted in (tso | uso, tso, 0):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, _TUN_F_CSUM | wanted)
        except OSError:
            continue
        return bool(wanted & _TSO), bool(wanted & _USO)
    return False, False


def _probe_udp() -> tuple[bool, bool]:
    """Whether UDP sockets segment on send (Linux 4.18) and coalesce on receive (5.0)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return _accepts(probe, _UDP_SEGMENT, 1400), _accepts(probe, _UDP_GRO, 1)


def _accepts(probe: socket.socket, option: int, value: int) -> bool:
    try:
        probe.setsockopt(_SOL_UDP, option, value)
    except OSError:
        return False
    return True
