"""The handshake against a published vector, an independent implementation and a hostile wire."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from nacl.bindings import crypto_aead_chacha20poly1305_ietf_encrypt
from noise.connection import Keypair, NoiseConnection

from jvpnd.core import noise
from jvpnd.core.noise import Initiator, NoiseStateError, Responder, public_key

VECTOR = json.loads((Path(__file__).parent / "data/noise_ikpsk2_cacophony.json").read_text())

CLIENT, GATEWAY = b"\x11" * 32, b"\x22" * 32
CLIENT_EPHEMERAL, GATEWAY_EPHEMERAL = b"\x33" * 32, b"\x44" * 32
PSK = b"\x55" * 32
PROLOGUE = b"JVP/1"

# The points of small order on Curve25519 and their non-canonical encodings (RFC 7748, section 6.1
# asks for the check; the values follow from the curve, p = 2**255 - 19).
_P = 2**255 - 19
_ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
_ORDER_8_OTHER = 39382357235489614581723060781553021112529911719440698176882885853963445705823
LOW_ORDER = [
    value.to_bytes(32, "little") for value in (0, 1, _ORDER_8, _ORDER_8_OTHER, _P - 1, _P, _P + 1)
]


def initiator(psk: bytes = PSK, prologue: bytes = PROLOGUE, gateway: bytes = GATEWAY) -> Initiator:
    return Initiator(CLIENT, public_key(gateway), CLIENT_EPHEMERAL, psk, prologue)


def exchange() -> tuple[Initiator, bytes, Responder, bytes]:
    client, gateway = initiator(), Responder(GATEWAY, PROLOGUE)
    first = client.write_message(b"hello")
    assert gateway.read_message(first) == b"hello"
    return client, first, gateway, gateway.write_response(b"welcome", GATEWAY_EPHEMERAL, PSK)


def hexed(name: str) -> bytes:
    value = VECTOR[name]
    return bytes.fromhex(value if isinstance(value, str) else value[0])


def test_published_vector() -> None:
    first, second, *transport = (
        (bytes.fromhex(m["payload"]), bytes.fromhex(m["ciphertext"])) for m in VECTOR["messages"]
    )
    client = Initiator(
        hexed("init_static"),
        hexed("init_remote_static"),
        hexed("init_ephemeral"),
        hexed("init_psks"),
        hexed("init_prologue"),
    )
    gateway = Responder(hexed("resp_static"), hexed("resp_prologue"))
    assert client.write_message(first[0]) == first[1]
    assert gateway.read_message(first[1]) == first[0]
    assert gateway.remote_static == public_key(hexed("init_static"))
    answer = gateway.write_response(second[0], hexed("resp_ephemeral"), hexed("resp_psks"))
    assert answer == second[1]
    assert client.read_response(second[1]) == second[0]
    assert client.handshake_hash == gateway.handshake_hash == hexed("handshake_hash")
    assert client.split() == gateway.split()
    for number, (payload, ciphertext) in enumerate(transport):  # the initiator sends first
        key, nonce = client.split()[number % 2], struct.pack("<xxxxQ", number // 2)
        sealed = crypto_aead_chacha20poly1305_ietf_encrypt(payload, b"", nonce, key)
        assert sealed == ciphertext


def independent(role: str, psk: bytes) -> Any:
    peer = NoiseConnection.from_name(noise.PROTOCOL_NAME)
    peer.set_prologue(PROLOGUE)
    peer.set_psks(psk)
    if role == "initiator":
        peer.set_as_initiator()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, CLIENT)
        peer.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, public_key(GATEWAY))
    else:
        peer.set_as_responder()
        peer.set_keypair_from_private_bytes(Keypair.STATIC, GATEWAY)
    peer.start_handshake()
    return peer


@pytest.mark.parametrize("psk", [noise.ZERO, PSK], ids=["no psk", "psk"])
def test_our_client_talks_to_an_independent_responder(psk: bytes) -> None:
    client, peer = initiator(psk), independent("responder", psk)
    assert peer.read_message(client.write_message(b"one")) == b"one"
    assert client.read_response(bytes(peer.write_message(b"two"))) == b"two"
    assert client.handshake_hash == peer.get_handshake_hash()
    nonce, (to_gateway, to_client) = bytes(12), client.split()
    sealed = crypto_aead_chacha20poly1305_ietf_encrypt(b"up", b"", nonce, to_gateway)
    assert peer.decrypt(sealed) == b"up"
    sealed = crypto_aead_chacha20poly1305_ietf_encrypt(b"down", b"", nonce, to_client)
    assert peer.encrypt(b"down") == sealed


@pytest.mark.parametrize("psk", [noise.ZERO, PSK], ids=["no psk", "psk"])
def test_an_independent_initiator_talks_to_our_gateway(psk: bytes) -> None:
    peer, gateway = independent("initiator", psk), Responder(GATEWAY, PROLOGUE)
    assert gateway.read_message(bytes(peer.write_message(b"one"))) == b"one"
    assert gateway.remote_static == public_key(CLIENT)
    assert peer.read_message(gateway.write_response(b"two", GATEWAY_EPHEMERAL, psk)) == b"two"
    assert gateway.handshake_hash == peer.get_handshake_hash()
    sealed = peer.encrypt(b"up")
    to_gateway = gateway.split()[0]
    assert sealed == crypto_aead_chacha20poly1305_ietf_encrypt(b"up", b"", bytes(12), to_gateway)


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=20))
def test_both_ends_agree_on_everything(up: bytes, down: bytes, prologue: bytes) -> None:
    client, gateway = initiator(prologue=prologue), Responder(GATEWAY, prologue)
    first = client.write_message(up)
    assert len(first) == len(up) + noise.INIT_OVERHEAD
    assert gateway.read_message(first) == up
    second = gateway.write_response(down, GATEWAY_EPHEMERAL, PSK)
    assert len(second) == len(down) + noise.RESPONSE_OVERHEAD
    assert client.read_response(second) == down
    assert client.split() == gateway.split()
    assert client.handshake_hash == gateway.handshake_hash


def test_any_changed_bit_of_either_message_is_refused() -> None:
    client, first, _, second = exchange()
    for bit in range(8 * len(first)):
        gateway = Responder(GATEWAY, PROLOGUE)
        assert gateway.read_message(flip(first, bit)) is None
        assert not hasattr(gateway, "remote_static")
    for bit in range(8 * len(second)):
        assert client.read_response(flip(second, bit)) is None


def flip(message: bytes, bit: int) -> bytes:
    changed = bytearray(message)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@given(st.binary(max_size=200))
@example(bytes(noise.INIT_OVERHEAD))
@example(bytes(noise.MAX_MESSAGE + 1))
def test_garbage_is_refused_and_never_raises(message: bytes) -> None:
    assert Responder(GATEWAY, PROLOGUE).read_message(message) is None
    client = initiator()
    client.write_message(b"")
    assert client.read_response(message) is None


def test_every_truncation_and_extension_is_refused() -> None:
    client, first, _, second = exchange()
    for length in range(len(first)):
        assert Responder(GATEWAY, PROLOGUE).read_message(first[:length]) is None
    assert Responder(GATEWAY, PROLOGUE).read_message(first + b"\0") is None
    for length in range(len(second)):
        assert client.read_response(second[:length]) is None
    assert client.read_response(second + b"\0") is None


def test_a_forged_answer_does_not_spoil_the_true_one() -> None:
    client, _, gateway, second = exchange()
    assert client.read_response(flip(second, 300)) is None
    assert client.read_response(b"x" * 100) is None
    assert client.read_response(second) == b"welcome"
    assert client.split() == gateway.split()


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda p: p.hex()[:8])
def test_low_order_ephemeral_keys_are_refused(point: bytes) -> None:
    """Even where the sender can finish the message, since it knows the DH result to be zeros."""
    client, first, _, second = exchange()
    assert Responder(GATEWAY, PROLOGUE).read_message(point + first[32:]) is None
    assert client.read_response(point + second[32:]) is None
    assert Responder(GATEWAY, PROLOGUE).read_message(zero_dh_message(point)) is None


def zero_dh_message(ephemeral: bytes) -> bytes:
    """A message 1 sealed under keys that follow from es = ss = zeros: no secret is needed."""
    state = noise._SymmetricState(PROLOGUE)
    state.mix_hash(public_key(GATEWAY))
    state.mix_ephemeral(ephemeral)
    state.mix_key(noise.ZERO)
    sealed_static = state.seal(bytes(32))
    state.mix_key(noise.ZERO)
    return ephemeral + sealed_static + state.seal(b"let me in")


@pytest.mark.parametrize("point", LOW_ORDER, ids=lambda p: p.hex()[:8])
def test_a_low_order_static_key_is_refused(point: bytes) -> None:
    """Sealed properly under the true es: only the check on ss stands in the way."""
    state = noise._SymmetricState(PROLOGUE)
    state.mix_hash(public_key(GATEWAY))
    ephemeral = public_key(CLIENT_EPHEMERAL)
    state.mix_ephemeral(ephemeral)
    state.mix_dh(CLIENT_EPHEMERAL, public_key(GATEWAY))
    sealed_static = state.seal(point)
    state.mix_key(noise.ZERO)
    message = ephemeral + sealed_static + state.seal(b"let me in")
    assert Responder(GATEWAY, PROLOGUE).read_message(message) is None
    with pytest.raises(ValueError, match="low-order"):
        Initiator(CLIENT, point, CLIENT_EPHEMERAL).write_message(b"")


def test_wrong_psk_prologue_or_gateway_key_fails() -> None:
    client, gateway = initiator(psk=PSK), Responder(GATEWAY, PROLOGUE)
    assert gateway.read_message(client.write_message(b"")) == b""  # the psk comes in message 2
    assert client.read_response(gateway.write_response(b"", GATEWAY_EPHEMERAL)) is None

    first = initiator(prologue=b"JVP/2").write_message(b"")
    assert Responder(GATEWAY, PROLOGUE).read_message(first) is None
    first = initiator(gateway=b"\x66" * 32).write_message(b"")
    assert Responder(GATEWAY, PROLOGUE).read_message(first) is None


def test_an_answer_to_another_handshake_is_refused() -> None:
    _, _, _, second = exchange()
    other = Initiator(CLIENT, public_key(GATEWAY), b"\x77" * 32, PSK, PROLOGUE)
    other.write_message(b"hello")
    assert other.read_response(second) is None


def test_calls_out_of_order_raise() -> None:
    client, gateway = initiator(), Responder(GATEWAY, PROLOGUE)
    with pytest.raises(NoiseStateError):
        client.read_response(bytes(64))
    with pytest.raises(NoiseStateError):
        client.split()
    with pytest.raises(NoiseStateError):
        gateway.write_response(b"", GATEWAY_EPHEMERAL)
    first = client.write_message(b"")
    with pytest.raises(NoiseStateError):
        client.write_message(b"")
    assert gateway.read_message(first) == b""
    with pytest.raises(NoiseStateError):
        gateway.read_message(first)
    with pytest.raises(NoiseStateError):
        _ = gateway.handshake_hash
    second = gateway.write_response(b"", GATEWAY_EPHEMERAL, PSK)
    with pytest.raises(NoiseStateError):
        gateway.write_response(b"", GATEWAY_EPHEMERAL, PSK)
    assert client.read_response(second) == b""
    with pytest.raises(NoiseStateError):
        client.read_response(second)


def test_a_responder_that_refused_stays_refused() -> None:
    first = initiator().write_message(b"")
    gateway = Responder(GATEWAY, PROLOGUE)
    assert gateway.read_message(flip(first, 5)) is None
    with pytest.raises(NoiseStateError):
        gateway.read_message(first)


def test_own_keys_and_payloads_of_a_wrong_size_raise() -> None:
    public = public_key(GATEWAY)
    for keys in ((b"x", public, PSK), (CLIENT, b"x", PSK), (CLIENT, public, b"x")):
        with pytest.raises(ValueError, match="must be 32"):
            Initiator(*keys)
    with pytest.raises(ValueError, match="must be 32"):
        Initiator(CLIENT, public, CLIENT_EPHEMERAL, b"short")
    with pytest.raises(ValueError, match="must be 32"):
        Responder(b"")
    with pytest.raises(ValueError, match="at most"):
        initiator().write_message(bytes(noise.MAX_MESSAGE - noise.INIT_OVERHEAD + 1))
    largest = initiator().write_message(bytes(noise.MAX_MESSAGE - noise.INIT_OVERHEAD))
    assert Responder(GATEWAY, PROLOGUE).read_message(largest) is not None


def test_a_payload_or_key_that_is_refused_leaves_the_handshake_usable() -> None:
    client, gateway = initiator(), Responder(GATEWAY, PROLOGUE)
    with pytest.raises(ValueError, match="at most"):
        client.write_message(bytes(noise.MAX_MESSAGE))
    assert gateway.read_message(client.write_message(b"")) == b""
    with pytest.raises(ValueError, match="must be 32"):
        gateway.write_response(b"", GATEWAY_EPHEMERAL, b"short")
    assert client.read_response(gateway.write_response(b"", GATEWAY_EPHEMERAL, PSK)) == b""
