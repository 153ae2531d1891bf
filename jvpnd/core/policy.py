"""The policy: bounds on how a session recovers. Validated whole before use, never half applied."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache

TRANSPORTS = ("udp", "quic", "tcp", "tls")
UPLINK_KEYS = ("preferred_uplinks", "metered_uplinks", "forbidden_uplinks")
MAX_UPLINKS = 32  # names or patterns in one of these lists
METERED_BEATS = 10  # idle heartbeats between probes of a metered candidate


class PolicyError(ValueError):
    """One field is wrong: which, what is wrong with it, and what is allowed."""

    def __init__(self, key: str, problem: str, allowed: str) -> None:
        super().__init__(f"{key}: {problem} (allowed: {allowed})")
        self.key, self.problem, self.allowed = key, problem, allowed


@dataclass(frozen=True, slots=True)
class Policy:
    """Times in milliseconds; floors of 0 are off (docs/configuration.md explains each field)."""

    version: int = 1
    session_ttl_ms: int = 86_400_000
    transport_loss_ttl_ms: int = 60_000
    max_recovery_window_ms: int = 8_000
    max_switches_per_minute: int = 8
    switch_cooldown_ms: int = 500
    heartbeat_active_ms: int = 100
    heartbeat_idle_ms: int = 1_000
    volatile_after_ms: int = 2_000
    volatile_to_degraded_ms: int = 4_000
    stability_window_ms: int = 3_000
    loss_floor: float = 0.20
    latency_floor_ms: int = 0
    jitter_floor_ms: int = 0
    loss_window_ms: int = 2_000
    improvement_factor: float = 1.10
    allowed_transports: tuple[str, ...] = TRANSPORTS
    proof_max_age_ms: int = 5_000
    drain_ms: int = 500
    store_loss_ttl_ms: int = 30_000
    max_candidates: int = 8
    warm_connections: int = 4
    rekey_after_ms: int = 120_000
    preferred_uplinks: tuple[str, ...] = ()
    metered_uplinks: tuple[str, ...] = ()
    forbidden_uplinks: tuple[str, ...] = ()

    @classmethod
    def from_table(cls, table: Mapping[str, object]) -> Policy:
        """The policy of a TOML table; PolicyError names the first field that is wrong."""
        known = [field.name for field in fields(cls)]
        for key in table:
            if key not in known:
                raise PolicyError(key, "unknown key", ", ".join(known))
        values: dict[str, object] = {}
        for key, (kind, low, high) in RANGES.items():
            if key in table:
                values[key] = _number(key, table[key], kind, low, high)
        if "allowed_transports" in table:
            values["allowed_transports"] = _transports(table["allowed_transports"])
        for key in UPLINK_KEYS:
            if key in table:
                values[key] = _uplinks(key, table[key])
        policy = cls(**values)  # type: ignore[arg-type]
        policy._check_together()
        return policy

    def successor(self, table: Mapping[str, object]) -> Policy:
        """The policy of `table` in place of this one: its version must be a higher one, and is the
        next one where the table has none. PolicyError otherwise."""
        policy = Policy.from_table(table)
        if "version" not in table:
            return replace(policy, version=self.version + 1)
        if policy.version <= self.version:
            problem = f"{policy.version} is not above {self.version}, which is in force"
            raise PolicyError("version", problem, f"{self.version + 1} or more, or none")
        return policy

    def require_any(self, carried: Collection[str]) -> None:
        """PolicyError where none of the transports that there are endpoints for is allowed."""
        if not set(carried) & set(self.allowed_transports):
            problem = f"{shown(list(self.allowed_transports))} leaves no endpoint to use"
            raise PolicyError(
                "allowed_transports", problem, f"a list with {', '.join(sorted(carried))}"
            )

    def allows(self, transport: str, uplink: str) -> bool:
        """Whether a path of this kind may be a candidate at all."""
        forbidden = _is_listed(uplink, self.forbidden_uplinks)
        return transport in self.allowed_transports and not forbidden

    def tier(self, uplink: str) -> int:
        """0 preferred, 1 neither, 2 metered: the last resort."""
        if _is_listed(uplink, self.metered_uplinks):
            return 2
        return 0 if _is_listed(uplink, self.preferred_uplinks) else 1

    def preference(self, transport: str, uplink: str) -> tuple[int, int]:
        """Of paths that are equally healthy the one with the smallest is taken. Only for paths that
        are allowed."""
        return self.tier(uplink), self.allowed_transports.index(transport)

    def candidate_heartbeat_ms(self, uplink: str) -> int:
        """Between two probes of a candidate: seldom where each costs money."""
        metered = _is_listed(uplink, self.metered_uplinks)
        return self.heartbeat_idle_ms * (METERED_BEATS if metered else 1)

    def _check_together(self) -> None:
        rules = (
            # a path that is merely idle must not look late between two heartbeats
            ("volatile_after_ms", "heartbeat_idle_ms", 1),
            ("heartbeat_idle_ms", "heartbeat_active_ms", 0),
            ("volatile_to_degraded_ms", "volatile_after_ms", 0),
            ("session_ttl_ms", "transport_loss_ttl_ms", 0),
            ("proof_max_age_ms", "drain_ms", 0),
        )
        for key, below, more in rules:
            value, limit = getattr(self, key), getattr(self, below)
            if value < limit + more:
                relation = "not above" if more else "below"
                raise PolicyError(
                    key, f"{value} is {relation} {below} = {limit}", f"{limit + more} or more"
                )


_DAY_MS = 86_400_000
RANGES: dict[str, tuple[type, float, float]] = {
    "version": (int, 1, 2**31),
    "session_ttl_ms": (int, 1_000, 40 * _DAY_MS),
    "transport_loss_ttl_ms": (int, 100, _DAY_MS),
    "max_recovery_window_ms": (int, 100, 600_000),
    "max_switches_per_minute": (int, 1, 600),
    "switch_cooldown_ms": (int, 0, 60_000),
    "heartbeat_active_ms": (int, 50, 10_000),
    "heartbeat_idle_ms": (int, 100, 30_000),
    "volatile_after_ms": (int, 100, 60_000),
    "volatile_to_degraded_ms": (int, 100, 120_000),
    "stability_window_ms": (int, 100, 600_000),
    "loss_floor": (float, 0.0, 1.0),
    "latency_floor_ms": (int, 0, 10_000),
    "jitter_floor_ms": (int, 0, 10_000),
    "loss_window_ms": (int, 500, 60_000),
    "improvement_factor": (float, 1.0, 10.0),
    "proof_max_age_ms": (int, 500, 60_000),
    "drain_ms": (int, 0, 1_000),
    "store_loss_ttl_ms": (int, 1_000, 3_600_000),
    "max_candidates": (int, 1, 64),
    "warm_connections": (int, 0, 64),
    "rekey_after_ms": (int, 1_000, 3_600_000),
}


def shown(value: object) -> str:
    """A wrong value as messages show it: short, on one line."""
    try:
        text = repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(key: str, value: object, kind: type, low: float, high: float) -> int | float:
    if kind is int:
        allowed = f"a whole number from {int(low)} to {int(high)}"
    else:
        allowed = f"a number from {low:g} to {high:g}"
    right = isinstance(value, int) or (kind is float and isinstance(value, float))
    if isinstance(value, bool) or not right:
        raise PolicyError(key, f"{shown(value)} is of the wrong type", allowed)
    assert isinstance(value, int | float)
    if not low <= value <= high:
        raise PolicyError(key, f"{shown(value)} is out of range", allowed)
    return float(value) if kind is float else value


@lru_cache(maxsize=1024)  # asked for each path at each look
def _is_listed(uplink: str, names: tuple[str, ...]) -> bool:
    return any(fnmatchcase(uplink, name) for name in names)


def _uplinks(key: str, value: object) -> tuple[str, ...]:
    allowed = f'a list of at most {MAX_UPLINKS} interface names or patterns like "wwan*"'
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise PolicyError(key, f"{shown(value)} is of the wrong type", allowed)
    if len(value) > MAX_UPLINKS or not all(0 < len(entry) <= 32 for entry in value):
        raise PolicyError(key, f"{shown(value)} is too long or has an empty name", allowed)
    return tuple(value)


def _transports(value: object) -> tuple[str, ...]:
    key, allowed = "allowed_transports", f"a list of one or more of {', '.join(TRANSPORTS)}"
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise PolicyError(key, f"{shown(value)} is of the wrong type", allowed)
    if not value:
        raise PolicyError(key, "is empty", allowed)
    for entry in value:
        if entry not in TRANSPORTS:
            raise PolicyError(key, f"{shown(entry)} is not known", allowed)
        if value.count(entry) > 1:
            raise PolicyError(key, f"{shown(entry)} is there twice", allowed)
    return tuple(value)
