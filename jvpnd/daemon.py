"""The life of `jvpnd`: set up in order, serve until SIGTERM, take down in reverse."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from jvpnd import commands
from jvpnd.client import ClientShell
from jvpnd.config import Config, ConfigError, load
from jvpnd.control.server import AlreadyRunning, ControlServer
from jvpnd.dataplane.plane import DataPlaneError
from jvpnd.gateway import GatewayShell
from jvpnd.host import notify, wall_ms
from jvpnd.net.errors import MissingFeature
from jvpnd.net.routes import HostNetwork
from jvpnd.net.tun import add_queue, open_tun
from jvpnd.observe.log import EventLog
from jvpnd.store.table import MemoryTable
from jvpnd.transport.udp import ListenError

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_FEATURE = 3
_log = logging.getLogger("jvpnd")


class RuntimeDirError(Exception):
    """The runtime directory cannot be used; one line that says why."""


def run(config_file: Path, runtime: Path, check_only: bool) -> int:
    """Run the daemon in the foreground; returns its exit status (docs/cli.md)."""
    try:
        config = load(config_file)
        if check_only:
            print(f"{config_file}: ok: {config.role} {config.node}")
            return EXIT_OK
        _require_root()
        with _usable(runtime):
            runtime.mkdir(mode=0o755, parents=True, exist_ok=True)
        asyncio.run(_serve(config, runtime))
    except (ConfigError, RuntimeDirError, AlreadyRunning) as error:
        print(f"jvpnd: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except ListenError as error:
        print(f"jvpnd: {config_file}: {error}", file=sys.stderr)
        return EXIT_CONFIG
    except (MissingFeature, DataPlaneError) as error:
        print(f"jvpnd: {error}", file=sys.stderr)
        return EXIT_FEATURE
    return EXIT_OK


@contextlib.contextmanager
def _usable(runtime: Path) -> Iterator[None]:
    """What the kernel says about the runtime directory, as one line for the user."""
    try:
        yield
    except OSError as error:
        problem = f"--runtime-dir {runtime}: {error.strerror or error}"
        allowed = "a directory that root may write to, with a name of at most 90 bytes"
        raise RuntimeDirError(f"{problem} (allowed: {allowed})") from error


def _require_root() -> None:
    if os.geteuid() != 0:
        raise MissingFeature("must run as root: it creates a TUN device, routes and sockets")


async def _serve(config: Config, runtime: Path) -> None:
    """Everything that is entered here is left in reverse order, whatever happens."""
    events = EventLog(config.node, wall_ms)
    async with contextlib.AsyncExitStack() as stack:
        stopped = _stop_signal()
        socket_file = runtime / "control.sock"
        server = ControlServer(socket_file)
        with _usable(runtime):
            await server.start()
        stack.push_async_callback(server.close)
        name, several = config.interface.name, config.lanes > 1
        tun = open_tun(name, multi_queue=several, disabled=config.disabled)
        queues = [tun.fd, *(add_queue(tun) for _ in range(1, config.lanes))]
        for fd in queues:
            stack.callback(os.close, fd)
        network = HostNetwork(tun.name, runtime)
        await network.clean_stale()
        stack.push_async_callback(network.remove)
        shell: ClientShell | GatewayShell
        if config.role == "client":
            shell = ClientShell(config, tun, queues, network, events, runtime)
            server.handlers = commands.client_handlers(shell, tun, events)
        else:
            shell = GatewayShell(
                config, tun, queues, network, events, MemoryTable(), runtime
            )
            server.handlers = commands.gateway_handlers(shell, tun, events)
        stack.push_async_callback(shell.stop)
        await shell.start()
        _log.info("%s %s is up on %s", config.role, config.node, tun.name)
        notify("READY=1")
        await stopped.wait()
        notify("STOPPING=1")
        _log.info("stopping")


def _stop_signal() -> asyncio.Event:
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    return stopped
