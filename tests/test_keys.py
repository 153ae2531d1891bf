"""The key schedule: whatever differs in what a key is for, differs in the key."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jvpnd.core import keys
from jvpnd.core.ticket import TICKET_LEN, Ticket, open_ticket

ROOT, OTHER, NONCE = b"r" * 32, b"s" * 32, b"n" * 32
blobs = st.binary(max_size=40)


@given(st.lists(blobs, max_size=4), st.lists(blobs, max_size=4))
def test_fields_cannot_run_into_each_other(one: list[bytes], two: list[bytes]) -> None:
    same = keys.derive(ROOT, "x", *one) == keys.derive(ROOT, "x", *two)
    assert same == (one == two)


def test_every_key_of_a_session_is_another() -> None:
    found = [keys.proof_key(ROOT), keys.reset_key(ROOT, NONCE[:16]), keys.ticket_key(ROOT)]
    for root in (ROOT, OTHER):
        for epoch in (1, 2):
            for nonce in (NONCE, OTHER):
                found.append(keys.ack_key(root, epoch, nonce))
                pairs = [
                    keys.client_to_gateway(root, epoch, nonce),
                    keys.gateway_to_client(root, epoch, nonce, NONCE),
                    keys.gateway_to_client(root, epoch, nonce, OTHER),
                ]
                found += [key for pair in pairs for key in (pair.data, pair.control)]
    assert len(set(found)) == len(found)


def test_the_root_needs_both_halves_of_the_hybrid() -> None:
    base = keys.root_secret((ROOT, OTHER), NONCE, ROOT)
    assert keys.root_secret((ROOT, OTHER), NONCE, OTHER) != base
    assert keys.root_secret((ROOT, ROOT), NONCE, ROOT) != base
    assert keys.root_secret((ROOT, OTHER), ROOT, ROOT) != base


def test_a_ticket_opens_under_its_key_only() -> None:
    ticket = Ticket(bytes(range(16)), 3, 0xDEADBEEF, 7)
    sealed = ticket.seal(ROOT, b"x" * 24)
    assert len(sealed) == TICKET_LEN
    assert open_ticket(sealed, ROOT) == ticket
    assert open_ticket(sealed, OTHER) is None
    for at in range(TICKET_LEN):
        assert open_ticket(sealed[:at], ROOT) is None
        spoilt = bytearray(sealed)
        spoilt[at] ^= 1
        assert open_ticket(bytes(spoilt), ROOT) is None
