"""A whole cluster: a client behind a wire, two nodes with a LAN, and etcd on a network of its own.

    client  up-a --- [router] ===wire=== net --- out  node a  lan --- bridge --- host
                                             --- out  node b  lan ---
                                         etcd --- sto  node a, node b
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType

from jvpnd.core.noise import public_key
from lab.cluster import HOST, NODES, ClusterLan
from lab.daemons import PORTS, Daemon
from lab.namespace import Namespace, ip
from lab.stage import until
from lab.topology import Uplink
from lab.wire import Conditions
from tests.etcd import Etcd

OUTSIDE = {"a": "198.51.100.2", "b": "198.51.100.6"}
TUNNEL = {"a": "192.168.50.201/29", "b": "192.168.50.206/29"}
CLIENT = "192.168.50.202"
STORE = "10.9.0.10"
WELL = Conditions(delay_ms=10)
# Tests switch more often than a user would.
POLICY = "max_switches_per_minute = 600\nswitch_cooldown_ms = 0\n"
PROXY = 'proxy_neighbours = ["eth1"]'
_prefixes = itertools.count()


class ClusterNet:
    """The network, with etcd running."""

    def __init__(self, folder: Path, members: int = 1, conditions: Conditions = WELL) -> None:
        with contextlib.ExitStack() as building:
            self.lan = building.enter_context(ClusterLan())
            self.host, self.nodes = self.lan.host, self.lan.nodes
            self.client = building.enter_context(Namespace("client"))
            self.net = building.enter_context(Namespace("net"))
            self.store = building.enter_context(Namespace("etcd"))
            self.net.sysctl("net.ipv4.ip_forward", "1")
            self.uplink = Uplink("a", 1, self.client, self.net)
            building.callback(self.uplink.close)
            self.uplink.wire.set_both(conditions)
            self.store.ip("addr", "add", f"{STORE}/32", "dev", "lo")
            for number, label in enumerate(NODES):
                self._join(number, label)
            self.etcd = self.store.within(lambda: Etcd(folder, members, address=STORE))
            building.callback(self.etcd.close)
            self.store.within(self.etcd.start)
            self._stack = building.pop_all()

    def _join(self, number: int, label: str) -> None:
        """A node to the network of its clients, and to that of etcd."""
        node, first = self.nodes[label], 4 * number
        _link(self.net, f"n{label}", f"198.51.100.{first + 1}/30", node, "out", OUTSIDE[label])
        node.ip("route", "add", "default", "via", f"198.51.100.{first + 1}")
        ours = f"10.9.1.{first + 2}"
        _link(self.store, f"s{label}", f"10.9.1.{first + 1}/30", node, "sto", ours)
        node.ip("route", "add", f"{STORE}/32", "via", f"10.9.1.{first + 1}")

    def cut_off(self, label: str) -> None:
        """The node does not reach etcd any more, and nobody tells it."""
        self.store.nft(
            f"table ip cut_{label} {{ chain in {{ type filter hook input priority 0\n"
            f'iifname "s{label}" drop\n}}\n}}\n'
        )

    def join_again(self, label: str) -> None:
        self.store.nft(f"table ip cut_{label}\ndelete table ip cut_{label}\n")

    def kill_store(self, *numbers: int) -> None:
        """As a power cut does: these members of etcd, or all."""
        for number in numbers or range(len(self.etcd.members)):
            self.etcd.kill(number)

    def start_store(self, *numbers: int) -> None:
        """Until it answers."""
        self.store.within(lambda: self.etcd.start(*numbers))

    def heal(self) -> None:
        """Whatever a test has done."""
        for label in NODES:
            self.join_again(label)
        if self.etcd.missing:
            self.start_store(*self.etcd.missing)

    def store_leader(self) -> int:
        """The number of the member that leads."""
        return self.store.within(self.etcd.leader)

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> ClusterNet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _link(
    left: Namespace, left_device: str, left_address: str,
    right: Namespace, right_device: str, right_address: str,
) -> None:
    ip(
        *("link", "add", left_device, "netns", left.name, "type", "veth"),
        *("peer", "name", right_device, "netns", right.name),
    )
    for end, device, address in (
        (left, left_device, left_address), (right, right_device, f"{right_address}/30"),
    ):
        end.ip("addr", "add", address, "dev", device)
        end.ip("link", "set", device, "up")


class Cluster:
    """Two gateways and a client, configured as users would; their rows are under a prefix of their
    own."""

    def __init__(
        self,
        net: ClusterNet,
        policy: str = "",
        gateway_policy: str = "",
        sticky: bool = False,
        named: bool = True,
        nat: bool = False,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`policy`: more than POLICY. `named`: the client's file names both nodes; else it knows
        only where `a` is. `nat`: the client is translated, instead of a host of the LAN. `more`:
        lines of a node's `[cluster]` that replace the usual ones, by label."""
        self.net = net
        self.nodes: dict[str, Daemon] = {}
        (secret, public), (client_secret, client_public) = _key_pair(), _key_pair()
        self.secret, cluster_key = secret, _key_pair()[0]
        prefix = f"/jvpn{next(_prefixes)}/"
        for label in NODES:
            store = {"store": '"none"'} if sticky else _etcd(net, label, prefix)
            store.update(line.split(" = ", 1) for line in more.get(label, "").splitlines())
            config = _node_config(label, client_public, POLICY + gateway_policy, store, nat)
            self.nodes[label] = Daemon(net.nodes[label], config, secret)
            self.set_cluster_key(label, cluster_key)
        known = NODES if named else ("a",)
        config = _client_config(public, POLICY + policy, known, named)
        self.client = Daemon(net.client, config, client_secret)

    def set_cluster_key(self, label: str, key: str) -> None:
        """For its next start."""
        key_file = self.nodes[label].folder / "cluster.key"
        key_file.write_text(key + "\n")
        key_file.chmod(0o600)

    def start(self, *labels: str) -> None:
        """The nodes, or these, and then the client, which begins at the first that answers."""
        self.start_nodes(*labels)
        self.client.start()
        self.client.wait_state("ATTACHED")

    def start_nodes(self, *labels: str) -> None:
        """Until they know each other, if they share a table."""
        for label in labels or NODES:
            self.nodes[label].start()
        for label in labels or NODES:
            until(lambda label=label: self._knows_all(label), f"{label} knows the others")

    def _knows_all(self, label: str) -> bool:
        seen = self.nodes[label].ask("cluster")
        names = {node["name"] for node in seen["nodes"]}
        return seen["store"]["kind"] == "none" or names >= set(self.running())

    def running(self) -> list[str]:
        return [label for label, node in self.nodes.items() if is_running(node)]

    def owner(self) -> str:
        """The node that the client's binding leads to; "" without one."""
        session = self.client.status()["session"]
        if session is None or session["binding"] is None:
            return ""
        remote = session["binding"]["remote"]
        return next(label for label, address in OUTSIDE.items() if remote.startswith(address))

    def other(self) -> str:
        return "b" if self.owner() == "a" else "a"

    def take(self, label: str) -> None:
        """Have the client go there, as often as it takes."""

        def is_there() -> bool:
            session = self.client.status()["session"]
            if session["state"] != "ATTACHED":
                return False
            if self.owner() != label:
                self.client.ctl("switch", self.path(label))
            return self.owner() == label

        until(is_there, f"the client is at {label}", timeout_s=30)

    def path(self, label: str) -> str:
        """The client's path to a node."""
        rows = self.client.status()["paths"]
        return next(str(row["id"]) for row in rows if OUTSIDE[label] in row["id"])

    def close(self) -> None:
        for each in (self.client, *self.nodes.values()):
            each.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def is_running(daemon: Daemon) -> bool:
    return daemon.process is not None and daemon.process.poll() is None


def _key_pair() -> tuple[str, str]:
    secret = secrets.token_bytes(32)
    private, public = (base64.b64encode(key).decode() for key in (secret, public_key(secret)))
    return private, public


def _etcd(net: ClusterNet, label: str, prefix: str) -> dict[str, str]:
    urls = [f"http://{STORE}:{member.port}" for member in net.etcd.members]
    return {
        "store": '"etcd"',
        "endpoints": json.dumps(urls),
        "key_file": '"cluster.key"',
        "address": json.dumps([NODES[label][0]]),
        "node_ttl_s": "3",
        "prefix": f'"{prefix}"',
    }


def _node_config(
    label: str, client: str, policy: str, store: Mapping[str, str], nat: bool
) -> str:
    cluster = "".join(f"{key} = {value}\n" for key, value in store.items())
    return (
        f'role = "gateway"\nnode = "{label}"\n'
        f'[interface]\nname = "jvpn0"\naddress = ["{TUNNEL[label]}"]\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f'[[listen]]\ntransport = "udp"\naddress = "{OUTSIDE[label]}"\nport = {PORTS["udp"]}\n'
        f'[[client]]\nname = "laptop"\npublic_key = "{client}"\naddress = ["{CLIENT}"]\n'
        f"[forwarding]\n{'nat = true' if nat else PROXY}\n"
        f"[cluster]\n{cluster}[policy]\n{policy}"
    )


def _client_config(gateway: str, policy: str, known: Iterable[str], named: bool) -> str:
    endpoints = "".join(
        f'[[gateway.endpoint]]\ntransport = "udp"\naddress = "{OUTSIDE[label]}"\n'
        f'port = {PORTS["udp"]}\n' + (f'node = "{label}"\n' if named else "")
        for label in known
    )
    return (
        'role = "client"\nnode = "laptop"\n[interface]\nname = "jvpn0"\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f'[gateway]\npublic_key = "{gateway}"\n{endpoints}'
        f'[routes]\nmode = "split"\nnetworks = ["192.168.50.0/24"]\n[policy]\n{policy}'
    )


__all__ = ["CLIENT", "HOST", "Cluster", "ClusterNet"]
