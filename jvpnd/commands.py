"""What `jvpnctl` can ask of a running daemon: one handler a command."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jvpnd import status, top
from jvpnd.config import Config, transports
from jvpnd.control.server import Handler, Refused
from jvpnd.core.policy import PolicyError
from jvpnd.host import now_ms
from jvpnd.net.tun import Tun
from jvpnd.observe.filter import Filter
from jvpnd.observe.log import EventLog
from jvpnd.observe.telemetry import Telemetry
from jvpnd.shell import Core, CoreDriver

if TYPE_CHECKING:  # a daemon loads the shell of its own role only
    from jvpnd.client import ClientShell
    from jvpnd.cluster import Cluster
    from jvpnd.gateway import GatewayShell

Args = Mapping[str, Any]
MAX_LINES_BEHIND = 65_536  # of a recording, by who follows it


def client_handlers(
    shell: ClientShell, tun: Tun, events: EventLog, telemetry: Telemetry
) -> dict[str, Handler]:
    """The commands of a client."""

    def sessions(_: Args) -> list[Any]:
        session = status.client_session(shell.agent)
        return [] if session is None else [session]

    def switch(args: Args) -> Any:
        wanted = args.get("path")
        if wanted is not None and not isinstance(wanted, str):
            raise Refused("USAGE", "path must be a path id or null")
        refusal = shell.core.switch(now_ms(), wanted)
        shell.driver.pump()
        if refusal is not None:
            raise Refused(str(refusal.reason), refusal.message)
        return status.client_session(shell.agent)

    def terminate(args: Args) -> Any:
        session = shell.agent.session
        held = session.id.hex() if session and session.id else ""
        if args.get("id") != held:
            raise Refused("SESSION_NOT_FOUND", f"no session {args.get('id')}; here: {held or '-'}")
        refusal = shell.core.terminate(now_ms())
        shell.driver.pump()
        if refusal is not None:
            raise Refused(str(refusal.reason), refusal.message)
        return {"terminated": held}

    async def record(args: Args) -> AsyncIterator[Any]:
        coming: asyncio.Queue[str] = asyncio.Queue(MAX_LINES_BEHIND)
        shell.tape.listeners.add(coming)
        try:
            for line in shell.tape.lines():
                yield line
            while args.get("follow"):
                if coming.full():  # a recording with a hole is none
                    raise Refused("RATE_LIMITED", "the reader is too slow for the recording")
                yield await coming.get()
        finally:
            shell.tape.listeners.discard(coming)

    def no_cluster(_: Args) -> Any:
        raise Refused("WRONG_ROLE", "a client is no node of a cluster: ask a gateway")

    return {
        "cluster": _plain(no_cluster),
        "drain": _plain(no_cluster),
        "status": _plain(
            lambda _: {
                **status.client_status(shell, tun),
                "events": events.status(),
                "telemetry": telemetry.status(),
            }
        ),
        "sessions": _plain(sessions),
        "paths": _plain(lambda _: status.client_paths(shell)),
        "switch": _plain(switch),
        "terminate": _plain(terminate),
        "record": record,
        "samples": _plain(lambda _: shell.samples.as_json()),
        "top": top.client_top(shell),
        **_common(shell.core, shell.driver, shell.config, events, shell.paths.refresh),
    }


def gateway_handlers(
    shell: GatewayShell, tun: Tun, events: EventLog, telemetry: Telemetry
) -> dict[str, Handler]:
    """The commands of a gateway."""

    def no_paths(_: Args) -> Any:
        raise Refused("WRONG_ROLE", "a gateway has no paths of its own: ask the client")

    def no_recording(_: Args) -> Any:
        raise Refused("WRONG_ROLE", "a gateway makes no recording: ask the client")

    def terminate(args: Args) -> Any:
        try:
            session_id = bytes.fromhex(str(args.get("id")))
        except ValueError:
            raise Refused("USAGE", "id must be hexadecimal") from None
        if not shell.core.terminate(now_ms(), session_id):
            raise Refused("SESSION_NOT_FOUND", f"no session {args.get('id')}")
        shell.driver.pump()
        return {"terminated": session_id.hex()}

    async def whole(_: Args) -> Any:
        told = await status.gateway_status(shell, tun)
        return {**told, "events": events.status(), "telemetry": telemetry.status()}

    async def sessions(_: Args) -> Any:
        return await status.gateway_sessions(shell)

    def node() -> Cluster:
        if shell.cluster is None:
            raise Refused("WRONG_ROLE", "this gateway is alone: its configuration has no [cluster]")
        return shell.cluster

    def drain(args: Args) -> Any:
        leave = args.get("leave")
        if not isinstance(leave, bool):
            raise Refused("USAGE", "leave must be true or false")
        node().leave(leave)
        return {"draining": leave, "sessions": len(shell.core.sessions)}

    return {
        "status": whole,
        "sessions": sessions,
        "cluster": _plain(lambda _: node().status()),
        "drain": _plain(drain),
        "paths": _plain(no_paths),
        "switch": _plain(no_paths),
        "terminate": _plain(terminate),
        "record": _plain(no_recording),
        "samples": _plain(lambda _: {}),
        "top": top.gateway_top(shell),
        **_common(shell.core, shell.driver, shell.config, events),
    }


def _common(
    core: Core,
    driver: CoreDriver,
    config: Config,
    events: EventLog,
    applied: Callable[[], None] = lambda: None,
) -> dict[str, Handler]:
    """`applied`: called when a policy was applied."""

    def apply(args: Args) -> Any:
        table = args.get("table")
        if not isinstance(table, dict):
            raise Refused("USAGE", "table must be an object: the policy's keys and values")
        try:
            policy = core.own_policy.successor(table)
            policy.require_any(transports(config))
        except PolicyError as error:
            raise Refused("POLICY_INVALID", f"policy.{error}") from None
        core.apply_policy(now_ms(), policy)
        driver.pump()
        applied()
        return asdict(core.policy)

    def recent(args: Args) -> list[Any]:
        return list(events.recent(session_id=_session_of(args, "id")))

    async def stream(args: Args) -> AsyncIterator[Any]:
        try:
            wanted = Filter.of(args)
        except ValueError as error:
            raise Refused("USAGE", str(error)) from None
        limit = args.get("limit")
        past = [event for event in events.recent() if wanted.passes(event)]
        with events.subscribe() as coming:
            for event in past[-limit:] if isinstance(limit, int) and limit > 0 else past:
                yield event
            if args.get("follow"):
                async for event in coming:
                    if wanted.passes(event):
                        yield event

    return {
        "policy": _plain(lambda _: asdict(core.policy)),
        "policy_apply": _plain(apply),
        "timeline": _plain(recent),
        "events": stream,
    }


def _session_of(args: Args, key: str) -> str | None:
    """A SessionID, or how it begins."""
    value = args.get(key)
    if value is not None and not isinstance(value, str):
        raise Refused("USAGE", f"{key} must be a session id or null")
    return value


def _plain(answer: Callable[[Args], Any]) -> Callable[[Args], Awaitable[Any]]:
    async def handler(args: Args) -> Any:
        return answer(args)

    return handler
