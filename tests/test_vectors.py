"""The vectors, the protocol's page and the code agree.

What is recomputed here follows docs/protocol.md with the primitives of otherclient.py, and uses
nothing of `jvpnd.core`; only the last tests look at the code itself.
"""

from __future__ import annotations

import hashlib
import inspect
import ipaddress
import json
import re
import struct
from typing import Any

import nacl.bindings as sodium
import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from jvpnd.core import keys, messages, packets
from jvpnd.core.states import TABLE
from jvpnd.core.wire import PacketType

from .otherclient import Noise, agreed, derived, hkdf, mac, public, xsealed
from .vectors import FILE, kem_of, make

VECTORS = json.loads(FILE.read_text())
PAGE = (FILE.parent / "protocol.md").read_text()
STATIC, SHAKE, FIRST, MOVE = (
    VECTORS[name] for name in ("static", "handshake", "first_epoch", "reattach")
)
SECOND = MOVE["epoch"]


def raw(value: str) -> bytes:
    return bytes.fromhex(value)


# --- payloads, field by field ---

INIT_PAYLOAD = struct.pack(
    "<BBBBQ16s16sQ",
    1,  # version
    0,  # no AES instructions
    0,  # UDP
    1,  # path number
    SHAKE["timestamp_us"],
    bytes(16),  # no rekey
    bytes(16),  # supersedes nothing
    1,  # attempt
) + raw(SHAKE["kem_public"])


def sealed_ticket(issue: int, next_index: bytes, nonce: bytes) -> bytes:
    body = raw(SHAKE["session_id"]) + struct.pack("<Q", issue) + next_index + bytes(4)  # no node
    key = derived(raw(STATIC["gateway_secret"]), "ticket")
    return nonce + bytes(sodium.crypto_secretbox(body, nonce, key))


FIRST_TICKET = sealed_ticket(0, raw(SHAKE["next_index"]), raw(SHAKE["ticket_nonce"]))


def welcome() -> bytes:
    parts = [
        raw(SHAKE["session_id"]),
        bytes([1, 0, 0, 0]),  # ChaCha20-Poly1305
        raw(SHAKE["gateway_index"]),
        struct.pack("<Q", 1),  # state version
        FIRST_TICKET,
        raw(SHAKE["next_index"]),
        derived(raw(STATIC["gateway_secret"]), "reset", raw(SHAKE["session_id"])),
        raw(SHAKE["kem_ciphertext"]),
        # version, session_ttl_ms and so on: the defaults of docs/configuration.md
        struct.pack("<11I", 1, 86_400_000, 60_000, 8_000, 8, 500, 5_000, 500, 120_000, 100, 1_000),
        bytes([len(SHAKE["addresses"])]),
    ]
    for text in SHAKE["addresses"]:
        address = ipaddress.ip_interface(text)
        parts.append(bytes([address.version, address.network.prefixlen]) + address.ip.packed)
    parts.append(bytes([len(SHAKE["endpoints"])]))
    for transport, text, port, node in SHAKE["endpoints"]:
        packed = ipaddress.ip_address(text).packed if text else b""
        number = ("udp", "tcp", "tls", "quic").index(transport)
        parts.append(struct.pack("<BHIB", number, port, node, len(packed)) + packed)
    return b"".join(parts)


def exchange() -> tuple[Noise, bytes, bytes]:
    """The state after both messages, and these."""
    gateway, client = raw(STATIC["gateway_secret"]), raw(STATIC["client_secret"])
    ours, theirs = raw(SHAKE["client_ephemeral_secret"]), raw(SHAKE["gateway_ephemeral_secret"])
    state = Noise(public(gateway))
    state.mix_ephemeral(public(ours))
    state.mix_key(agreed(ours, public(gateway)))  # es
    first = public(ours) + state.seal(public(client))
    state.mix_key(agreed(client, public(gateway)))  # ss
    first += state.seal(INIT_PAYLOAD)
    state.mix_ephemeral(public(theirs))
    state.mix_key(agreed(theirs, public(ours)))  # ee
    state.mix_key(agreed(theirs, public(client)))  # se
    state.mix_psk(raw(STATIC["psk"]))
    return state, first, public(theirs) + state.seal(welcome())


def root() -> bytes:
    state, _, _ = exchange()
    first, second = hkdf(state.ck, b"", 2)
    return derived(first + second, "root", raw(SHAKE["kem_secret"]), state.h)


# --- the vectors ---


def test_every_step_of_the_handshake() -> None:
    state, _, _ = exchange()
    told = [(raw(step["h"]), raw(step["ck"]), raw(step["k"])) for step in SHAKE["noise"]]
    assert state.trace == told


def test_the_packets_of_the_handshake() -> None:
    _, first, second = exchange()
    index = raw(SHAKE["client_index"])
    front = bytes([1, 0, 0, 0]) + index + first
    stealth = derived(raw(STATIC["gateway_public"]), "stealth")
    assert stealth == raw(SHAKE["stealth_key"])
    assert front + mac(stealth, front) + bytes(16) == raw(SHAKE["init"])
    assert bytes([2, 0, 0, 0]) + index + second == raw(SHAKE["response"])


def test_the_kem_is_ml_kem_768_and_its_secret_is_in_the_root() -> None:
    kem = MLKEM768PrivateKey.from_seed_bytes(raw(SHAKE["kem_seed"]))
    assert kem.public_key().public_bytes_raw() == raw(SHAKE["kem_public"])
    assert kem.decapsulate(raw(SHAKE["kem_ciphertext"])) == raw(SHAKE["kem_secret"])
    assert root() == raw(SHAKE["root"])


@pytest.mark.parametrize("epoch", [FIRST, SECOND], ids=["first", "second"])
def test_the_keys_of_an_epoch(epoch: dict[str, Any]) -> None:
    number = epoch["epoch"]
    if number == 1:
        client_nonce = gateway_nonce = exchange()[0].h
    else:
        client_nonce, gateway_nonce = raw(MOVE["client_nonce"]), raw(MOVE["gateway_nonce"])
    for what in ("data", "control"):
        up = derived(root(), f"{what} c2g", number, client_nonce)
        down = derived(root(), f"{what} g2c", number, client_nonce, gateway_nonce)
        assert up == raw(epoch[f"{what}_c2g"])
        assert down == raw(epoch[f"{what}_g2c"])
    assert derived(root(), "notice", number) == raw(epoch["notice_key"])


def test_keys_that_outlive_epochs() -> None:
    secret = raw(STATIC["gateway_secret"])
    assert derived(secret, "ticket") == raw(SHAKE["ticket_key"])
    assert derived(secret, "reset", raw(SHAKE["session_id"])) == raw(SHAKE["reset_key"])
    assert derived(root(), "proof") == raw(SHAKE["proof_key"])
    assert [public(secret), public(raw(STATIC["client_secret"]))] == [
        raw(STATIC["gateway_public"]),
        raw(STATIC["client_public"]),
    ]


CONTROL = {
    "probe": ("c2g", FIRST, struct.pack("<BBBBI", 1, 1, 1, 0, 1)),
    "probe_reply": ("g2c", FIRST, struct.pack("<BBBBIIII", 2, 1, 1, 0, 1, 0, 1, 0)),
    "close": ("g2c", SECOND, bytes([4, 1])),  # OPERATOR_TERMINATION
}


@pytest.mark.parametrize("name", CONTROL)
def test_control_packets(name: str) -> None:
    way, epoch, body = CONTROL[name]
    receiver = "gateway_index" if way == "c2g" else "client_index"
    header = bytes([7, 0, 0, 0]) + struct.pack("<IQ", epoch[receiver], 0)
    cipher = ChaCha20Poly1305(raw(epoch[f"control_{way}"]))
    assert header + cipher.encrypt(bytes(12), body, header) == raw(VECTORS[name])


@pytest.mark.parametrize("suite", ["CHACHA20_POLY1305", "AES_256_GCM"])
def test_data_records(suite: str) -> None:
    cipher: AESGCM | ChaCha20Poly1305
    key = raw(FIRST["data_c2g"])
    cipher = AESGCM(key) if suite == "AES_256_GCM" else ChaCha20Poly1305(key)
    records = [each for each in VECTORS["data"] if each["suite"] == suite]
    assert len(records) == 5
    for counter, record in enumerate(records):
        datagrams = [raw(each) for each in record["datagrams"]]
        more = len(datagrams) - 1
        headers = [
            bytes([8, 0, part, more]) + struct.pack("<IQ", FIRST["gateway_index"], counter)
            for part in range(more + 1)
        ]
        nonce = bytes(4) + counter.to_bytes(8, "little")
        sealed = cipher.encrypt(nonce, raw(record["plain"]), headers[0])
        assert [each[:16] for each in datagrams] == headers
        assert b"".join(each[16:] for each in datagrams) == sealed
        assert len({len(each) for each in datagrams[:-1]}) < 2


def test_frames_and_slices_say_what_the_page_says() -> None:
    frames, spanned, *slices = (raw(each["plain"]) for each in VECTORS["data"][:5])
    assert frames == spanned
    found, at = [], 0
    while at < len(frames):
        flags, length, gso_size = struct.unpack_from("<BHH", frames, at)
        found.append((flags, gso_size, frames[at + 5 : at + 5 + length]))
        at += 5 + length
    (packet, super_packet, report) = found
    assert (packet[:2], super_packet[:2], report[:2]) == ((1, 0), (0, 100), (8, 0))
    assert struct.unpack("<QQQH", report[2]) == (1000, 2, 3, 1232)
    head, body = super_packet[2][:28], super_packet[2][28:]
    for number, text in enumerate(slices):
        flags = 2 if number < 2 else 2 | 4
        piece = body[number * 100 : number * 100 + 100]
        assert text == struct.pack("<BHH", flags, number, 100) + head + piece


def test_a_move() -> None:
    assert raw(MOVE["ticket"]) == FIRST_TICKET
    clear = bytes([4, 0, 0, 0]) + FIRST_TICKET
    body = struct.pack("<Q", MOVE["attempt"]) + raw(MOVE["client_nonce"])
    # last epoch, state version (two transitions by then), ms since the INIT
    body += struct.pack("<QQQ", 1, 2, 2_500) + raw(MOVE["client_index"])
    body += bytes([1, 2, 1, 0])  # TCP, path number, TRANSPORT_DEAD
    request = clear + xsealed(derived(root(), "proof"), raw(MOVE["request_nonce"]), body, clear)
    assert request == raw(MOVE["request"])

    clear = bytes([5, 0, 0, 0]) + raw(MOVE["client_index"])
    ticket = sealed_ticket(1, raw(MOVE["next_index"]), raw(MOVE["ticket_nonce"]))
    body = struct.pack("<Q", 2) + raw(MOVE["gateway_nonce"]) + struct.pack("<Q", 3)
    body += ticket + raw(MOVE["next_index"])
    key = derived(root(), "ack", MOVE["attempt"], raw(MOVE["client_nonce"]))
    assert key == raw(MOVE["ack_key"])
    assert clear + xsealed(key, raw(MOVE["ack_nonce"]), body, clear) == raw(MOVE["ack"])
    assert SECOND["gateway_index"] == int.from_bytes(raw(SHAKE["next_index"]), "little")


def test_a_refusal_is_proven_for_exactly_this_request() -> None:
    tag = hashlib.blake2b(raw(MOVE["request"]), digest_size=8).digest()
    assert tag == raw(MOVE["request_tag"])
    why = bytes([11, 0, 0, 0, 0])  # SESSION_NOT_FOUND, no other node
    proof = mac(raw(SHAKE["reset_key"]), b"reject" + tag + why)
    reject = bytes([6, 11, 0, 0]) + tag + bytes(4) + proof
    assert reject == raw(MOVE["reject_of_a_gateway_without_the_session"])


def test_a_notice_of_a_gateway_that_was_started_again() -> None:
    told = VECTORS["notice"]
    clear = bytes([9, 0, 0, 0]) + struct.pack("<I", FIRST["client_index"])
    sealed = xsealed(raw(FIRST["notice_key"]), raw(told["nonce"]), bytes([3]), clear)
    assert clear + sealed == raw(told["packet"])


def test_a_cookie() -> None:
    told = VECTORS["retry"]
    host, port = told["address"]
    text = struct.pack("<Hq", port, told["now_ms"] // 60_000) + ipaddress.ip_address(host).packed
    cookie = hashlib.blake2b(
        text, key=raw(told["secret"]), digest_size=16, person=b"jvp1 cookie"
    ).digest()
    assert cookie == raw(told["cookie"])
    assert bytes([3, 0, 0, 0]) + raw(SHAKE["client_index"]) + cookie == raw(told["packet"])


# --- the code and the page ---


def test_client_and_gateway_say_exactly_this() -> None:
    assert make(kem_of(VECTORS)) == VECTORS


def test_the_page_has_every_label_type_kind_and_reason() -> None:
    source = inspect.getsource(keys) + inspect.getsource(packets)
    labels = set(re.findall(r'derive\([^"()]*(?:\([^()]*\))?[^"()]*"([a-z0-9 ]+)"', source))
    assert {"root", "proof", "data c2g", "control g2c", "stealth"} <= labels
    missing = [label for label in labels if f'"{label}"' not in PAGE]
    assert missing == []
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    for kind in PacketType:
        assert any(row.startswith(f"| {kind.value} | {kind.name} |") for row in rows), kind
    for control in messages.Control:
        assert any(row.startswith(f"| {control.value} | {control.name} |") for row in rows), control
    for number, reason in enumerate(messages._WIRE_REASONS, 1):
        assert f"| {number} | {reason} " in PAGE, reason
    for cause in messages.Cause:
        assert f"{cause.value} {cause.name}" in PAGE, cause


def test_the_page_has_the_state_table_row_by_row() -> None:
    short = {"B": "BIRTH", "A": "ATTACHED", "V": "VOLATILE", "D": "DEGRADED", "R": "RECOVERING"}
    told = {}
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0] and set(cells[0].split()) <= short.keys():
            for letter in cells[0].split():
                told[short[letter], cells[1]] = cells[2], cells[3]
    assert told == {
        (str(state), str(event)): (str(target), str(reason))
        for (state, event), (target, reason) in TABLE.items()
    }


def test_the_page_has_the_length_of_every_packet() -> None:
    lengths = {
        "HANDSHAKE_INIT": SHAKE["init"],
        "RETRY": VECTORS["retry"]["packet"],
        "REATTACH_REQUEST": MOVE["request"],
        "REATTACH_ACK": MOVE["ack"],
        "REATTACH_REJECT": MOVE["reject_of_a_gateway_without_the_session"],
        "NOTICE": VECTORS["notice"]["packet"],
    }
    for name, packet in lengths.items():
        (row,) = (line for line in PAGE.splitlines() if re.match(rf"\| \d \| {name} \|", line))
        assert row.split("|")[-2].split()[0] == str(len(raw(packet))), name
