"""Judges the configuration, the daemon, its ports and the names that have to be resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jvpnd.doctor.finding import Finding, fail, ok, warn

MANAGERS = {
    "systemd": "systemd-resolved",
    "resolvconf": "resolvconf",
    "NetworkManager": "NetworkManager",
}


def configuration(problem: str | None, file: str, what: str) -> Finding:
    """`what`: role and node, where it is valid."""
    if problem is None:
        return ok("configuration", f"{file}: {what}")
    return fail("configuration", problem, "mend it, or begin with jvpnctl init")


def daemon(state: str | None, problem: str) -> Finding:
    """`state`: what the daemon says of itself, None where `problem` says why it does not."""
    if state is None:
        return warn("daemon", problem, "systemctl start jvpnd; journalctl -u jvpnd says more")
    return ok("daemon", f"runs: {state}")


def ports(refused: Mapping[str, str], is_running: bool, count: int) -> list[Finding]:
    """`refused`: why each endpoint cannot be listened on, `count` of them."""
    if is_running:
        return [ok("ports", "held by the running daemon")]
    if not refused:
        return [ok("ports", f"{count} can be had")]
    remedy = "ss -tulpn says who has it; end that, or change [[listen]]"
    return [fail("ports", f"{where}: {why}", remedy) for where, why in refused.items()]


def resolver(target: str, servers: Sequence[str]) -> Finding:
    """`target`: what /etc/resolv.conf really is; `servers`: those in it."""
    manager = next((name for key, name in MANAGERS.items() if key in target), "nobody")
    if not servers:
        return warn("DNS", f"{target} names no server", "see resolv.conf(5)")
    return ok("DNS", f"{', '.join(servers)}; managed by {manager}")


def names(unresolved: Mapping[str, str], count: int) -> list[Finding]:
    """`unresolved`: why each of the endpoints' names was not, `count` of them."""
    if not count:
        return []
    if not unresolved:
        return [ok("endpoint names", f"{count} resolved")]
    remedy = "check the name and DNS, or give the address itself"
    return [fail("endpoint names", f"{name}: {why}", remedy) for name, why in unresolved.items()]
