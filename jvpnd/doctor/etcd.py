"""Asks etcd, as a node of a cluster would, and changes nothing there."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Final

from jvpnd.configcluster import ClusterSettings, EtcdAccess
from jvpnd.doctor.cluster import Listed, MemberFacts
from jvpnd.store.etcdclient import Connection, EtcdError, Login, Refused
from jvpnd.store.etcdrows import decoded, encoded
from jvpnd.store.nodes import EtcdNodes
from jvpnd.store.sealing import Sealer
from jvpnd.store.watching import after

WITHIN_S: Final = 2.0  # for each member
_MAX_NODES: Final = 100


def members(settings: ClusterSettings, node: str) -> list[MemberFacts]:
    """What each of etcd's members says."""
    access = settings.etcd
    assert access is not None
    return [
        _member(replace(access, endpoints=(each,)), f"{settings.prefix}nodes/{node}")
        for each in access.endpoints
    ]


def _member(access: EtcdAccess, key: str) -> MemberFacts:
    """Whether it would read and write this key: etcd checks both, and the condition never holds."""
    name = encoded(key)
    never = {"key": name, "target": "VERSION", "result": "EQUAL", "version": "-1"}
    body = {
        "compare": [never],
        "success": [{"request_put": {"key": name, "value": ""}}],
        "failure": [{"request_range": {"key": name}}],
    }
    ((scheme, host, port),) = access.endpoints
    url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
    with closing(Connection(access, Login())) as connection:
        try:
            ahead_s = _ahead_s(connection)
            connection.ask("kv/txn", body, WITHIN_S)
        except EtcdError as error:
            problem = str(error).removeprefix(f"{url}: ")
            return MemberFacts(url, problem, isinstance(error, Refused))
    return MemberFacts(url, ahead_s=ahead_s)


def _ahead_s(connection: Connection) -> float | None:
    """So much at least this host's clock is ahead of that member's, whose answer has its time in
    whole seconds; None if it does not say."""
    before_s = time.time()
    text = connection.date(WITHIN_S)
    after_s = time.time()
    try:
        date_s = parsedate_to_datetime(text).timestamp()
    except ValueError:
        return None
    return max(0.0, before_s - (date_s + 1)) - max(0.0, date_s - after_s)


def listed(settings: ClusterSettings) -> Listed | None:
    """The nodes that are alive, None if etcd does not say."""
    assert settings.etcd is not None
    nodes = EtcdNodes(settings.prefix, Sealer(settings.keys))
    body = {
        "key": encoded(nodes.prefix),
        "range_end": encoded(after(nodes.prefix)),
        "limit": str(_MAX_NODES),
    }
    with closing(Connection(settings.etcd, Login())) as connection:
        try:
            kvs = connection.ask("kv/range", body, WITHIN_S).get("kvs", [])
        except EtcdError:
            return None
    names = {nodes.node(decoded(kv["key"])): kv for kv in kvs}
    return {name: nodes.info(name, kv) for name, kv in names.items() if name is not None}
