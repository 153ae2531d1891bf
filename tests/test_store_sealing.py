"""What nodes put into etcd opens for nodes only, and only as it was written."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.store.sealing import MAX_VALUE, Sealer

KEYS = (b"a" * 32, b"b" * 32, b"c" * 32)
CLEAR = {"owner": "gw1", "state_version": 7, "address": ["10.0.0.1"]}
SECRET = {"root": "5ec2e7", "epoch": 3}
VALUES = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.text()))


@given(st.text(), VALUES.filter(lambda clear: "sealed" not in clear), VALUES)
def test_what_was_sealed_opens(name: str, clear: dict[str, Any], secret: dict[str, Any]) -> None:
    assert Sealer(KEYS).opened(name, Sealer(KEYS).sealed(name, clear, secret)) == (clear, secret)


def test_the_first_key_seals_and_each_opens() -> None:
    for first in KEYS:
        value = Sealer([first]).sealed("n", CLEAR, SECRET)
        assert Sealer(KEYS).opened("n", value) == (CLEAR, SECRET)
        others = [key for key in KEYS if key != first]
        assert Sealer(others).opened("n", value) is None
    assert Sealer(KEYS[:1]).opened("n", Sealer(KEYS).sealed("n", CLEAR, SECRET)) is not None


def test_no_two_values_are_alike() -> None:
    sealer = Sealer(KEYS)
    assert len({sealer.sealed("n", CLEAR, SECRET) for _ in range(50)}) == 50


@pytest.mark.parametrize("key", ["owner", "state_version", "address"])
def test_a_clear_field_that_was_changed_is_found_out(key: str) -> None:
    value = json.loads(Sealer(KEYS).sealed("n", CLEAR, SECRET))
    for changed in ({**value, key: "gw2"}, {k: v for k, v in value.items() if k != key}):
        assert Sealer(KEYS).opened("n", json.dumps(changed).encode()) is None
    assert Sealer(KEYS).opened("n", json.dumps({**value, "more": 1}).encode()) is None
    assert Sealer(KEYS).opened("another", json.dumps(value).encode()) is None
    assert Sealer(KEYS).opened("n", json.dumps(value).encode()) is not None


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_byte_of_the_sealed_part_can_be_changed(at: int, bits: int) -> None:
    value = json.loads(Sealer(KEYS).sealed("n", CLEAR, SECRET))
    box = bytearray(base64.b64decode(value["sealed"]))
    box[at % len(box)] ^= bits
    value["sealed"] = base64.b64encode(box).decode()
    assert Sealer(KEYS).opened("n", json.dumps(value).encode()) is None


@given(st.binary(max_size=200) | st.text().map(lambda text: json.dumps(text).encode()))
def test_anything_else_does_not_open(value: bytes) -> None:
    assert Sealer(KEYS).opened("n", value) is None


@pytest.mark.parametrize("sealed", [None, 7, [], "AA", "?", "A" * 60])
def test_a_sealed_part_that_is_none_does_not_open(sealed: object) -> None:
    assert Sealer(KEYS).opened("n", json.dumps({**CLEAR, "sealed": sealed}).encode()) is None


def test_what_is_nested_too_deeply_or_too_long_does_not_open() -> None:
    assert Sealer(KEYS).opened("n", b'{"a":' * 9_000) is None
    long = Sealer(KEYS).sealed("n", CLEAR, {"text": "x" * MAX_VALUE})
    assert Sealer(KEYS).opened("n", long) is None
