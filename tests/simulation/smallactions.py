"""What may happen in a closed world, by name."""

from __future__ import annotations

from collections.abc import Callable

from .smallworld import HELD_MAX, SmallWorld

Action = Callable[[SmallWorld], bool]  # False where there is nothing to do it to


def _deliver(world: SmallWorld) -> bool:
    return bool(world.held) and (world.arrive(world.held.pop(0)) or True)


def _lose(world: SmallWorld) -> bool:
    return bool(world.held) and (world.lose(world.held.pop(0)) or True)


def _double(world: SmallWorld) -> bool:
    if not world.held or world.held[0].swap or len(world.held) == HELD_MAX:
        return False
    world.held.append(world.held[0])
    return _deliver(world)


def _overtake(world: SmallWorld) -> bool:
    if len(world.held) < 2:
        return False
    world.held.append(world.held.pop(0))
    return True


def _tick(world: SmallWorld) -> bool:
    world.talk()
    world.run(100)
    return True


def _wait(world: SmallWorld) -> bool:
    world.run(1_000)
    return True


def _toggle_cut(name: str) -> Action:
    def toggle(world: SmallWorld) -> bool:
        world.cut ^= {name}
        return True

    return toggle


def _toggle_link(name: str) -> Action:
    def toggle(world: SmallWorld) -> bool:
        (world.link_down if name in world.up else world.link_up)(name)
        return True

    return toggle


def _rebind(world: SmallWorld) -> bool:
    bound = world.agent.bound
    if bound is None:
        return False
    host, port = world.remotes[bound.id]
    world.remotes[bound.id] = host, port + 1
    return True


def _switch(world: SmallWorld) -> bool:
    refusal = world.agent.switch(world.now_ms, None)
    world.drain(world.client)
    return refusal is None


def _terminate(world: SmallWorld) -> bool:
    refusal = world.agent.terminate(world.now_ms)
    world.drain(world.client)
    return refusal is None


def _gateway_terminates(world: SmallWorld) -> bool:
    for session_id in list(world.gate.sessions):
        world.gate.terminate(world.now_ms, session_id)
        world.drain(world.gateway)
        return True
    return False


def _restart_gateway(world: SmallWorld) -> bool:
    world.boot_gateway()
    return True


def _restart_client(world: SmallWorld) -> bool:
    world.boot_client()
    return True


def _toggle_table(mode: str) -> Action:
    def toggle(world: SmallWorld) -> bool:
        world.table = mode if world.table == "quick" else "quick"
        return True

    return toggle


ACTIONS: dict[str, Action] = {
    "deliver": _deliver,
    "lose": _lose,
    "double": _double,
    "overtake": _overtake,
    "tick": _tick,
    "wait": _wait,
    "cut a": _toggle_cut("a"),
    "cut b": _toggle_cut("b"),
    "link a": _toggle_link("a"),
    "link b": _toggle_link("b"),
    "rebind": _rebind,
    "switch": _switch,
    "terminate": _terminate,
    "gateway terminates": _gateway_terminates,
    "gateway restarts": _restart_gateway,
    "client restarts": _restart_client,
    "table slow": _toggle_table("slow"),
    "table conflict": _toggle_table("conflict"),
}
