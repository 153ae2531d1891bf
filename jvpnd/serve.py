"""The life of `jvpnd`: set up in order, serve until SIGTERM, take down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

from jvpnd.config import Config
from jvpnd.control.server import AlreadyRunning, ControlServer, Handler
from jvpnd.core.dataclass import dataclass
from jvpnd.core.noise import public_key
from jvpnd.dataplane.launch import Launched
from jvpnd.dataplane.plane import DataPlane, DataPlaneError
from jvpnd.host import wall_ms
from jvpnd.net.errors import MissingFeature
from jvpnd.net.killguard import KillGuard
from jvpnd.net.routes import HostNetwork
from jvpnd.net.tun import Tun, add_queue, claim, inherited_tun, open_tun, set_persistent
from jvpnd.observe.log import EventLog
from jvpnd.observe.measures import Measures
from jvpnd.observe.telemetry import Telemetry
from jvpnd.servicemanager import keep, keeps_descriptors, kept, notify
from jvpnd.store.sqlite import SqliteTable, StoreError
from jvpnd.watchdog import Watchdog

if TYPE_CHECKING:
    from jvpnd.core.listing import ListChange
    from jvpnd.shell import Core, CoreDriver
    from jvpnd.store.etcd import EtcdTable

_TUN = "tun"  # its name at the service manager
_log = logging.getLogger("jvpnd")


class RuntimeDirError(Exception):
    """The runtime directory cannot be used; one line that says why."""


WRONG_SETTINGS = (RuntimeDirError, AlreadyRunning, StoreError)
MISSING = (MissingFeature, DataPlaneError)


def run(config_file: Path, config: Config, runtime: Path, launched: Launched) -> None:
    """Serve what `config_file` says, which is `config`, until SIGTERM.

    Raises one of WRONG_SETTINGS or MISSING, or ListenError."""
    with _usable(runtime):
        runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
    asyncio.run(_serve(config_file, config, runtime, launched))


@contextlib.contextmanager
def _usable(runtime: Path) -> Iterator[None]:
    """What the kernel says about the runtime directory, as one line for the user."""
    try:
        yield
    except OSError as error:
        problem = f"--runtime-dir {runtime}: {error.strerror or error}"
        allowed = "a directory that root may write to, with a name of at most 90 bytes"
        raise RuntimeDirError(f"{problem} (allowed: {allowed})") from error


async def _serve(
    config_file: Path, config: Config, runtime: Path, launched: Launched
) -> None:
    """Everything that is entered here is left in reverse order, whatever happens."""
    events = EventLog(config.node, wall_ms, config.limits.events)
    async with contextlib.AsyncExitStack() as stack:
        stopped = _stop_signal()
        socket_file = runtime / "control.sock"
        server = ControlServer(socket_file)
        with _usable(runtime):
            await server.start()
        stack.push_async_callback(server.close)
        telemetry = Telemetry(config.telemetry, config.node, config.role, events, wall_ms)
        telemetry.start()
        stack.push_async_callback(telemetry.stop)
        name = config.interface.name
        stack.enter_context(claim(name))
        guard = KillGuard(name, config.routes.kill_switch, config.routes.exclude)
        await guard.start()
        stack.push_async_callback(guard.stop)
        network = HostNetwork(name, runtime)
        await network.resume()
        tun, queues, is_kept = _open_tun(config, network.is_left)
        for fd in queues:
            stack.callback(os.close, fd)
        if not is_kept:  # then it goes with us, unless we are killed
            set_persistent(tun, True)
            stack.callback(set_persistent, tun, False)
            stack.push_async_callback(network.remove)
        cluster = _cluster_table(config)
        table: SqliteTable | None = None
        if cluster is None:
            with _usable(runtime):
                table = SqliteTable(runtime / "sessions.db", _owner(config))
            stack.callback(table.close)
        else:
            stack.push_async_callback(cluster.close)
            await cluster.open()
        plane = DataPlane(launched, queues, tun.offloads, config.interface.mtu, paused=True)
        stack.push_async_callback(plane.close)
        make = _client if config.role == "client" else _gateway
        shell, interface = make(
            Parts(config, tun, plane, network, events, table, cluster, telemetry, runtime)
        )
        stack.push_async_callback(shell.stop)
        if cluster is not None:  # no more answers come in while the rest is taken down
            stack.push_async_callback(cluster.close)
        await shell.start()
        # in a thread: what it imports takes a while, and the sessions are coming back
        handlers, measure = await asyncio.to_thread(interface)
        server.handlers = {**handlers, "reload": _reloading(config_file, config, shell)}
        telemetry.serve(measure)
        stack.callback(telemetry.hang_up)
        _log.info("%s %s is up on %s", config.role, config.node, tun.name)
        notify("READY=1")
        watchdog = Watchdog(tun.name, plane)
        watchdog.start()
        stack.callback(watchdog.stop)
        gc.freeze()
        gc.enable()
        await stopped.wait()
        notify("STOPPING=1")
        _log.info("stopping")


@dataclass(frozen=True, slots=True)
class Parts:
    """What both roles are made of."""

    config: Config
    tun: Tun
    plane: DataPlane
    network: HostNetwork
    events: EventLog
    table: SqliteTable | None  # one of the two
    cluster: EtcdTable | None
    telemetry: Telemetry
    runtime: Path


class Shell(Protocol):
    """`core`, `driver` and `apply_config`: as reloading.py wants them."""

    driver: CoreDriver

    @property
    def core(self) -> Core: ...
    async def apply_config(self, config: Config) -> ListChange | None: ...
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


# What jvpnctl and the metrics ask of a shell.
Interface: TypeAlias = Callable[[], tuple[dict[str, Handler], Callable[[], Measures]]]


# The other role's code is never imported, and what only jvpnctl needs when all is up.


def _client(its: Parts) -> tuple[Shell, Interface]:
    from jvpnd.client import ClientShell

    assert its.table is not None
    shell = ClientShell(
        its.config, its.tun, its.plane, its.network, its.events, its.table, its.runtime
    )

    def interface() -> tuple[dict[str, Handler], Callable[[], Measures]]:
        from jvpnd import commands, measures

        handlers = commands.client_handlers(shell, its.tun, its.events, its.telemetry)
        return handlers, partial(measures.client_measures, shell)

    return shell, interface


def _gateway(its: Parts) -> tuple[Shell, Interface]:
    from jvpnd.gateway import GatewayShell

    table = its.cluster or its.table
    assert table is not None
    shell = GatewayShell(
        its.config, its.tun, its.plane, its.network, its.events, table, its.runtime
    )
    if its.config.cluster is not None:
        shell.join(its.cluster)

    def interface() -> tuple[dict[str, Handler], Callable[[], Measures]]:
        from jvpnd import commands, measures

        handlers = commands.gateway_handlers(shell, its.tun, its.events, its.telemetry)
        return handlers, partial(measures.gateway_measures, shell)

    return shell, interface


def _reloading(config_file: Path, config: Config, shell: Shell) -> Handler:
    """From now on SIGHUP has the configuration read again, and so has the handler."""
    from jvpnd.reloading import Reloader

    reloader = Reloader(config_file, config, shell)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.hang_up)
    return reloader.command


def _open_tun(config: Config, is_left: bool) -> tuple[Tun, list[int], bool]:
    """The TUN, a descriptor of it for each lane, and whether the service manager keeps them over a
    restart. `is_left`: a device of this name that is there is ours."""
    name, lanes, disabled = config.interface.name, config.lanes, config.disabled
    fds = kept(_TUN)
    tun = inherited_tun(fds, name, lanes, disabled)
    if tun is not None:
        return tun, fds, True
    for fd in fds:
        os.close(fd)
    tun = open_tun(name, multi_queue=lanes > 1, disabled=disabled, ours=is_left)
    queues = [tun.fd, *(add_queue(tun) for _ in range(1, lanes))]
    return tun, queues, keeps_descriptors() and keep(_TUN, queues)


def _cluster_table(config: Config) -> EtcdTable | None:
    """The table that this gateway shares with others."""
    if config.cluster is None or config.cluster.etcd is None:
        return None
    from jvpnd.entries import told_endpoints
    from jvpnd.store.etcd import EtcdTable  # an extra

    ttl_ms = config.policy.session_ttl_ms
    return EtcdTable(config.cluster, config.node, told_endpoints(config), ttl_ms)


def _owner(config: Config) -> str:
    """What a daemon and its next start have in common, and no other: whose sessions they are."""
    return f"{config.role} {public_key(config.private_key).hex()}"


def _stop_signal() -> asyncio.Event:
    stopped = asyncio.Event()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to reload
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped
