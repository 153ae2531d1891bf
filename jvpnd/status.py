"""The JSON that `jvpnctl` gets: what a session, a path and the whole daemon look like."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jvpnd.config import Config
from jvpnd.core.client import ClientAgent
from jvpnd.core.offloads import why_off
from jvpnd.core.path import Path, PathInfo
from jvpnd.core.peer import Peer
from jvpnd.core.session import Session
from jvpnd.core.states import State
from jvpnd.dataplane.plane import DataPlane
from jvpnd.host import has_aes, now_ms
from jvpnd.net import killswitch
from jvpnd.net.tun import Tun
from jvpnd.rates import RateMeter

if TYPE_CHECKING:  # a daemon loads the shell of its own role only
    from jvpnd.client import ClientShell
    from jvpnd.gateway import GatewayShell

Json = dict[str, Any]

ROWS_A_TURN = 128


def _age(since_ms: float | None, now: float) -> int | None:
    return None if since_ms is None else max(0, round(now - since_ms))


def _session(session: Session, binding: Json | None, now: float) -> Json:
    attached = session.attached_since_ms
    return {
        "id": session.id.hex() if session.id else None,
        "state": str(session.state),
        "state_version": session.state_version,
        "epoch": session.epoch,
        "attached_since_ms": _age(attached or None, now),
        "age_ms": _age(session.created_ms, now),
        "switches": session.switches,
        "rekeys": session.rekeys,
        "suite": session.suite.name,
        "inner_addresses": list(session.addresses),
        "binding": binding,
    }


def _path(agent: ClientAgent, path: Path, now: float) -> Json:
    srtt, up, down = path.rtt.srtt_ms, path.up.rate(now), path.down.rate(now)
    return {
        "id": path.id,
        "transport": path.info.transport,
        "uplink": path.info.uplink,
        "local": path.info.local,
        "remote": path.info.remote,
        "state": path_state(agent, path),
        "rtt_ms": None if srtt is None else round(srtt, 2),
        "loss": round(path.loss_ratio(now), 3),
        "loss_up": None if up is None else round(up, 3),
        "loss_down": None if down is None else round(down, 3),
        "jitter_ms": round(path.jitter.jitter_ms, 2),
        "last_heard_ms": _age(path.heard_ms, now),
    }


def path_state(agent: ClientAgent, path: Path) -> str:
    if path is agent.bound:
        return "bound"
    if not agent.is_candidate(path):
        return "spare"
    return "down" if path.died_ms is not None else "up" if path.heard_ms is not None else "new"


def _traffic(plane: DataPlane, slots: list[int], control_drops: dict[str, int]) -> Json:
    rows = [plane.slot_counters(slot) for slot in slots]
    return {
        "tx_bytes": sum(row.tx_bytes for row in rows),
        "rx_bytes": sum(row.rx_bytes for row in rows),
        "tx_packets": sum(row.tx_packets for row in rows),
        "rx_packets": sum(row.rx_packets for row in rows),
        "dropped": {**plane.drops(), **control_drops},
    }


def _lanes(plane: DataPlane, slots: list[int]) -> list[Json]:
    """Packets by lane."""
    rows = [plane.lane_counters(slot) for slot in slots]
    return [
        {
            "tx_packets": sum(row[lane].tx_packets for row in rows),
            "rx_packets": sum(row[lane].rx_packets for row in rows),
        }
        for lane in range(plane.lanes)
    ]


def _rates(meter: RateMeter) -> Json:
    tx, rx = meter.bytes_per_s()
    return {"tx_bytes_per_s": round(tx), "rx_bytes_per_s": round(rx)}


def _offloads(tun: Tun, config: Config) -> Json:
    """What is on, and for the rest why it is off."""
    features = asdict(tun.offloads) | {"aes": has_aes(config.disabled)}
    return {"offloads": features, "offloads_off": why_off(features, config.disabled)}


def _kill_switch(config: Config) -> Json:
    """As configured, and as the kernel has it."""
    try:
        is_on = killswitch.is_on(config.interface.name)
    except OSError:  # a kernel without nft
        is_on = False
    return {"configured": config.routes.kill_switch, "on": is_on}


def client_paths(shell: ClientShell) -> list[Json]:
    """Every path, the bound one first, those that are not connected last."""
    now, agent = now_ms(), shell.agent
    rows = sorted(agent.paths.values(), key=lambda path: (path is not agent.bound, path.id))
    pending = [_unconnected(info, why) for info, why in shell.paths.pending()]
    return [*(_path(agent, path, now) for path in rows), *pending]


def _unconnected(info: PathInfo, why: str) -> Json:
    """A path that needs a connection and has none."""
    facts = {"id": info.id, "transport": info.transport, "uplink": info.uplink}
    unknown = ("rtt_ms", "loss", "loss_up", "loss_down", "jitter_ms", "last_heard_ms")
    return {
        **facts,
        "local": info.local,
        "remote": info.remote,
        "state": "closed",
        "why": why,
        **dict.fromkeys(unknown),
    }


def client_session(agent: ClientAgent) -> Json | None:
    session, bound = agent.session, agent.bound
    if session is None:
        return None
    binding = None
    if bound is not None:
        binding = {
            "path": bound.id,
            "transport": bound.info.transport,
            "uplink": bound.info.uplink,
            "local": bound.info.local,
            "remote": bound.info.remote,
        }
    return _session(session, binding, now_ms())


def client_status(shell: ClientShell, tun: Tun) -> Json:
    agent = shell.agent
    return {
        "role": "client",
        "node": shell.config.node,
        "state": str(agent.session.state) if agent.session else str(State.BIRTH),
        "session": client_session(agent),
        "resting": agent.is_resting,
        "paths": client_paths(shell),
        "traffic": _traffic(shell.plane, [shell.slot], shell.dropped) | _rates(shell.rates),
        "kill_switch": _kill_switch(shell.config),
        "dns": shell.dns.status(),
        "policy_version": agent.policy.version,
        "interface": tun.name,
        "lanes": _lanes(shell.plane, [shell.slot]),
        **_offloads(tun, shell.config),
    }


def gateway_session(shell: GatewayShell, peer: Peer) -> Json:
    binding = {
        "path": f"{peer.transport}/{peer.origin}",
        "transport": peer.transport,
        "uplink": None,
        "local": shell.listeners.label(peer.origin.socket_id),
        "remote": str(peer.origin),
    }
    now = now_ms()
    row = _session(peer.session, binding, now)
    assert peer.session.id is not None
    slot = shell.slots.get(peer.session.id)
    row |= {
        "client": peer.entry.name,
        "owner": shell.config.node,
        "last_heard_ms": _age(peer.heard_ms, now),
        "traffic": _traffic(shell.plane, [] if slot is None else [slot], {}),
    }
    row["traffic"].pop("dropped")
    return row


async def gateway_sessions(shell: GatewayShell) -> list[Json]:
    """Some at a time: where there are thousands, probes must not wait for somebody who looks."""
    rows = []
    for at, peer in enumerate(sorted(shell.core.sessions.values(), key=lambda p: p.entry.name)):
        if at % ROWS_A_TURN == ROWS_A_TURN - 1:
            await asyncio.sleep(0)
        if peer.session.state is not State.TERMINATED:
            rows.append(gateway_session(shell, peer))
    return rows


async def gateway_status(shell: GatewayShell, tun: Tun) -> Json:
    return {
        "role": "gateway",
        "node": shell.config.node,
        "state": "LISTENING",
        "listen": shell.listeners.labels(),
        "connections": shell.listeners.connections(),
        "session": None,
        "sessions": await gateway_sessions(shell),
        "clients_configured": len(shell.config.clients),
        "store": {"problem": shell.store_problem or None},
        "notes": await shell.notes(),
        "paths": [],
        "traffic": _traffic(
            shell.plane,
            list(shell.slots.values()),
            shell.dropped,
        )
        | _rates(shell.rates),
        "policy_version": shell.core.policy.version,
        "interface": tun.name,
        "lanes": _lanes(shell.plane, list(shell.slots.values())),
        **_offloads(tun, shell.config),
    }
