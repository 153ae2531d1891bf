"""A whole cluster: a client behind a wire, two nodes with a LAN, and etcd on a network of its own.

    client  up-a --- [router] ===wire=== net --- out  node a  lan --- bridge --- host
                                             --- out  node b  lan ---
                                         etcd --- sto  node a, node b
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

from lab.cluster import HOST, NODES, ClusterLan
from lab.daemons import PORTS, Daemon, key_pair
from lab.namespace import Namespace, ip
from lab.topology import Uplink
from lab.wire import Conditions
from tests.etcd import Etcd

OUTSIDE = {"a": "198.51.100.2", "b": "198.51.100.6"}
TUNNEL = {"a": "192.168.50.201/29", "b": "192.168.50.206/29"}
CLIENT = "192.168.50.202"
STORE = "10.9.0.10"
WELL = Conditions(delay_ms=10)
Event = dict[str, Any]


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
            f'table ip cut_{label} {{ chain in {{ type filter hook input priority 0; '
            f'iifname "s{label}" drop; }} }}'
        )

    def join_again(self, label: str) -> None:
        self.store.run("nft", "delete", "table", "ip", f"cut_{label}")

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
    """Two gateways and a client, configured as users would."""

    def __init__(
        self,
        net: ClusterNet,
        policy: str = "",
        gateway_policy: str = "",
        cluster: str = "",
        sticky: bool = False,
        more: Mapping[str, str] = MappingProxyType({}),
        named: bool = True,
    ) -> None:
        """`cluster`: more lines for `[cluster]`. `more`: lines of a node's file, by label. `named`:
        the client's file names both nodes; else it knows only where `a` is."""
        self.net = net
        self._stack = contextlib.ExitStack()
        gateway_keys, client_keys = key_pair(), key_pair()
        cluster_key = key_pair()[0]
        self.nodes = {
            label: Daemon(
                net.nodes[label],
                _node_config(
                    label, client_keys[1], gateway_policy, "" if sticky else _etcd(net, label)
                    + cluster, more.get(label, ""),
                ),
                gateway_keys[0],
            )
            for label in NODES
        }
        for node in self.nodes.values():
            key_file = node.folder / "cluster.key"
            key_file.write_text(cluster_key + "\n")
            key_file.chmod(0o600)
        known = NODES if named else ("a",)
        self.client = Daemon(
            net.client, _client_config(gateway_keys[1], policy, known, named), client_keys[0]
        )

    def start(self, *labels: str) -> None:
        """The nodes, and then the client, which begins at the first that answers."""
        for label in labels or NODES:
            self.nodes[label].start()
        self.client.start()
        self.client.wait_state("ATTACHED")

    def owner(self) -> str:
        """The node that the client's binding leads to."""
        remote = self.client.status()["session"]["binding"]["remote"]
        return next(label for label, address in OUTSIDE.items() if remote.startswith(address))

    def other(self) -> str:
        return "b" if self.owner() == "a" else "a"

    def session(self) -> str:
        return str(self.client.status()["session"]["id"])

    def ownership(self, label: str) -> list[str]:
        """What the node tells of ownership, in order."""
        events = self.nodes[label].events()
        return [e["details"]["what"] for e in events if e["event_type"] == "OWNERSHIP"]

    def close(self) -> None:
        for each in (self.client, *self.nodes.values()):
            each.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _etcd(net: ClusterNet, label: str) -> str:
    urls = [f"http://{STORE}:{member.port}" for member in net.etcd.members]
    addresses = json.dumps([NODES[label][0]])
    return (
        f'store = "etcd"\nendpoints = {json.dumps(urls)}\nkey_file = "cluster.key"\n'
        f"address = {addresses}\nnode_ttl_s = 3\n"
    )


def _node_config(label: str, client: str, policy: str, cluster: str, more: str) -> str:
    store = cluster or 'store = "none"\n'
    return (
        f'role = "gateway"\nnode = "{label}"\n'
        f'[interface]\nname = "jvpn0"\naddress = ["{TUNNEL[label]}"]\n'
        '[identity]\nprivate_key_file = "private.key"\n'
        f'[[listen]]\ntransport = "udp"\naddress = "{OUTSIDE[label]}"\nport = {PORTS["udp"]}\n'
        f'[[client]]\nname = "laptop"\npublic_key = "{client}"\naddress = ["{CLIENT}"]\n'
        f'[forwarding]\nproxy_neighbours = ["eth1"]\n[cluster]\n{store}{more}[policy]\n{policy}'
    )


def _client_config(gateway: str, policy: str, known: Any, named: bool) -> str:
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
