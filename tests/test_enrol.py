"""Enrolment without a daemon: addresses, texts, and files that are changed by one at a time."""

from __future__ import annotations

import base64
import ipaddress
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.config import Config, ConfigError, load
from jvpnd.core.nodes import node_tag
from jvpnd.enrol import files, host, listfile
from jvpnd.enrol.addressing import free_networks, next_addresses, own_address
from jvpnd.enrol.errors import EnrolError
from jvpnd.enrol.keys import new_key, public_text
from jvpnd.enrol.texts import (
    ClientAnswers,
    GatewayAnswers,
    client_block,
    client_text,
    gateway_text,
)
from jvpnd.transport.endpoint import Endpoint

OWN = ("10.77.0.1/24", "fd77::1/64")
GATEWAY = GatewayAnswers("gw", OWN, "vpn.example.org", 7700)


# --- addresses ---


def test_a_gateway_listens_on_its_own_public_address_and_else_on_every_one() -> None:
    """So that UDP answers leave from the address that clients know."""
    own = gateway_text(replace(GATEWAY, public_address="203.0.113.7", is_own_address=True))
    rows = tomllib.loads(own)["listen"]
    assert [row["address"] for row in rows] == ["203.0.113.7"] * 2
    assert not any("advertise" in row for row in rows)
    rows = tomllib.loads(gateway_text(GATEWAY))["listen"]
    assert [(row["address"], row["advertise"]) for row in rows] == [("::", "vpn.example.org")] * 2
    assert host.is_own("127.0.0.1")
    assert not host.is_own("203.0.113.7")
    assert not host.is_own("vpn.example.org")


def test_the_networks_chosen_overlap_nothing_that_is_there() -> None:
    taken = [ipaddress.ip_network(each) for each in ("10.77.0.0/16", "10.78.0.64/26", "fd00::/8")]
    assert free_networks(taken, b"\x01\x02\x03\x04\x05") == ("10.79.0.1/24", "fd01:203:405::1/64")
    assert free_networks([], bytes(5))[0] == "10.77.0.1/24"
    with pytest.raises(EnrolError, match="--network"):
        free_networks([ipaddress.ip_network("10.0.0.0/8")], bytes(5))


@pytest.mark.parametrize(
    ("given", "own"),
    [
        ("10.9.0.0/24", "10.9.0.1/24"),
        ("10.9.0.7/24", "10.9.0.7/24"),
        ("10.9.0.0/31", "10.9.0.0/31"),
        ("fd09::/64", "fd09::1/64"),
    ],
)
def test_a_network_stands_for_its_first_host(given: str, own: str) -> None:
    assert own_address(given) == own


@pytest.mark.parametrize("text", ["10.0.0.0/33", "home", ""])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(EnrolError, match="--network"):
        own_address(text)


@given(
    st.sampled_from(["10.77.0.1/24", "10.77.0.77/28", "10.77.0.0/31", "10.77.0.1/31"]),
    st.booleans(),
    st.sets(st.integers(0, 300)),
)
def test_the_next_addresses_are_free_hosts_of_the_same_number(
    v4: str, both: bool, used: set[int]
) -> None:
    own = [v4, "fd77::4d/64"] if both else [v4]
    networks = [ipaddress.ip_interface(each).network for each in own]
    taken = [str(network.network_address + number) for network in networks for number in used]
    try:
        found = [ipaddress.ip_address(each) for each in next_addresses(own, taken)]
    except EnrolError:
        assert len(used) >= networks[0].num_addresses - 3
        return
    numbers = {int(a) - int(n.network_address) for a, n in zip(found, networks, strict=True)}
    assert len(numbers) == 1
    for address, network, mine in zip(found, networks, own, strict=True):
        assert address in network
        assert str(address) not in taken
        assert address != ipaddress.ip_interface(mine).ip
        if network.prefixlen < 31:
            assert address not in (network.network_address, network.broadcast_address)


def test_a_full_network_is_named() -> None:
    with pytest.raises(EnrolError, match=r"10\.77\.0\.0/30"):
        next_addresses(["10.77.0.1/30", "fd77::1/64"], ["10.77.0.2"])


# --- texts ---


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "jvpnd.toml"
    file.write_bytes(text.encode())
    file.chmod(mode)
    key = folder / "private.key"
    if not key.exists():
        files.create_secret(key, new_key())
    return file


def test_a_gateways_file_says_what_was_answered(tmp_path: Path) -> None:
    config = load(written(tmp_path, gateway_text(GATEWAY)))
    assert (config.role, config.node, config.interface.address) == ("gateway", "gw", OWN)
    assert [(e.transport, e.port, e.advertise) for e in config.listen] == [
        ("udp", 7700, "vpn.example.org"),
        ("tcp", 7700, "vpn.example.org"),
    ]


@pytest.mark.parametrize("commented", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_a_clients_file_says_what_was_answered(
    tmp_path: Path, commented: bool, is_full: bool
) -> None:
    endpoints = (Endpoint("udp", "203.0.113.7", 7700), Endpoint("tls", "vpn.example.org", 443))
    private, shared, gateway = new_key(), new_key(), public_text(new_key())
    networks = [] if is_full else ["10.20.0.0/16", "fd20::/32"]
    answers = ClientAnswers(
        *("laptop", gateway, list(zip(endpoints, ("", "gw2"), strict=True)), is_full, networks),
        *(private, shared),
        mtu=1380,
    )
    text = client_text(answers, commented)
    config = load(written(tmp_path, text))
    assert config.gateway is not None
    udp, tls = config.gateway.endpoints
    assert (udp, replace(tls, node=0)) == endpoints
    assert tls.node == node_tag("gw2")
    assert config.gateway.preshared_key == base64.b64decode(shared)
    assert config.private_key == base64.b64decode(private)
    assert config.routes.mode == ("full" if is_full else "split")
    assert (list(config.routes.networks), config.interface.mtu) == (networks, 1380)
    assert ("#" in text) == commented


# --- the list of clients in a file ---

BODY = st.lists(
    st.sampled_from(
        [
            "",
            "# a comment",
            "[policy]\nmax_switches_per_minute = 6",
            '[[client]]\nname = "a"\npublic_key = "x"\naddress = [\n  "10.0.0.9",\n]',
            "[[client]] # b\nname = 'b'\npublic_key='y'",
            '[[listen]]\naddress = "::"  # here',
            '  [[client]]\n  name = "c"\n\n  # inside\n  public_key = "z"\n\n# below',
        ]
    ),
    max_size=8,
    unique_by=lambda part: part if part.startswith("[policy") else object(),
)
NEWLINES = st.sampled_from(["\n", "\r\n"])
BLOCK = client_block("new", "k" * 44, ["10.77.0.2"], ["192.168.5.0/24"], "p" * 44)


@given(BODY, NEWLINES, st.booleans())
def test_who_is_added_and_removed_again_leaves_every_byte_as_it_was(
    parts: list[str], newline: str, ends: bool
) -> None:
    text = ("\n".join(parts) + ("\n" if ends else "")).replace("\n", newline)
    more = listfile.with_block(text, BLOCK)
    assert more.startswith(text)
    assert tomllib.loads(more)["client"][-1]["name"] == "new"
    back = listfile.without(more, len(tomllib.loads(more)["client"]) - 1)
    assert back in (text, f"{text}\n")  # a last line has an end


@given(BODY, NEWLINES, st.integers(0, 7))
def test_any_client_may_go_or_change_and_comments_and_all_others_stay(
    parts: list[str], newline: str, number: int
) -> None:
    text = ("\n".join(parts) + "\n").replace("\n", newline)
    clients = tomllib.loads(text).get("client", [])
    if number >= len(clients):
        return
    without = listfile.without(text, number)
    left = tomllib.loads(without).get("client", [])
    assert left == clients[:number] + clients[number + 1 :]
    for comment in ("# a comment", "# below", "# here"):
        assert without.count(comment) == text.count(comment)
    other = listfile.with_values(text, number, {"public_key": "other"})
    assert tomllib.loads(other)["client"][number]["public_key"] == "other"
    changed = [a != b for a, b in zip(text.split("\n"), other.split("\n"), strict=True)]
    assert sum(changed) == 1


@pytest.mark.parametrize(
    "text",
    [
        'client = [{name = "a", public_key = "x"}]\n',
        'note = """\n[[client]]\n"""\n[[client]]\nname = "a"\npublic_key = "x"\n',
        '[["client"]]\nname = "a"\npublic_key = "x"\n',
    ],
)
def test_a_file_that_is_written_otherwise_is_left_to_its_writer(text: str) -> None:
    for change in (
        lambda: listfile.without(text, 0),
        lambda: listfile.with_values(text, 0, {"public_key": "y"}),
    ):
        with pytest.raises(EnrolError, match="by hand"):
            change()


# --- files ---


def with_client(text: str, config: Config, name: str = "laptop", host: int = 2) -> str:
    key = public_text(new_key())
    return listfile.with_block(text, client_block(name, key, [f"10.77.0.{host}"]))


def test_an_edit_keeps_owner_mode_and_links_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = written(tmp_path, gateway_text(GATEWAY), 0o640)
    os.chown(file, os.geteuid(), 12345 if os.geteuid() == 0 else -1)
    before, link = file.stat(), tmp_path / "link.toml"
    link.symlink_to(file)
    files.edit(link, with_client)
    after = file.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert link.is_symlink()
    assert [each.name for each in load(file).clients] == ["laptop"]
    assert sorted(os.listdir(tmp_path)) == ["jvpnd.toml", "link.toml", "private.key"]


def test_an_edit_that_would_not_be_valid_changes_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, gateway_text(GATEWAY))
    before = file.read_bytes()
    with pytest.raises(ConfigError, match=rf"{file}: client\[1\].address: 192.0.2.1") as found:
        files.edit(
            file, lambda t, _: t + client_block("x", public_text(new_key()), ["192.0.2.1"])
        )
    assert ".jvpnd" not in str(found.value)
    assert file.read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["jvpnd.toml", "private.key"]


ADDER = """
import sys
from pathlib import Path
from jvpnd.enrol import files, host, listfile
from jvpnd.enrol.addressing import next_addresses
from jvpnd.enrol.keys import new_key, public_text
from jvpnd.enrol.texts import client_block
def change(text, config):
    used = [a for c in config.clients for a in c.address]
    addresses = next_addresses(config.interface.address, used)
    block = client_block(name, public_text(new_key()), addresses)
    return listfile.with_block(text, block)
for number in range(5):
    name = f"{sys.argv[2]}-{number}"
    files.edit(Path(sys.argv[1]), change)
"""


def test_several_who_add_clients_at_the_same_time_lose_none(tmp_path: Path) -> None:
    file = written(tmp_path, gateway_text(GATEWAY))
    adders = [
        subprocess.Popen([sys.executable, "-c", ADDER, str(file), str(each)]) for each in range(4)
    ]
    assert [each.wait(60) for each in adders] == [0, 0, 0, 0]
    clients = load(file).clients
    assert len({each.name for each in clients}) == 20
    assert len({each.address for each in clients}) == 20


def test_a_first_configuration_replaces_only_one_that_says_nothing(tmp_path: Path) -> None:
    file, key = tmp_path / "new" / "jvpnd.toml", tmp_path / "new" / "private.key"
    assert files.create(file, gateway_text(GATEWAY), key, new_key, False)
    assert (file.stat().st_mode & 0o777, key.stat().st_mode & 0o777) == (0o600, 0o600)
    secret = key.read_bytes()
    with pytest.raises(EnrolError, match="--force"):
        files.create(file, gateway_text(GATEWAY), key, new_key, False)
    assert not files.create(file, gateway_text(GATEWAY), key, new_key, True)
    file.write_text("# role = 'gateway'\n")
    assert not files.create(file, gateway_text(GATEWAY), key, new_key, False)
    assert key.read_bytes() == secret  # or every client would have to be told


def test_a_first_configuration_that_is_not_valid_leaves_no_file(tmp_path: Path) -> None:
    file, key = tmp_path / "jvpnd.toml", tmp_path / "private.key"
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}: node"):
        files.create(file, gateway_text(GatewayAnswers("?", OWN, "x", 1)), key, new_key, False)
    assert os.listdir(tmp_path) == []
