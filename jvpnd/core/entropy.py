"""Randomness as an argument: the core never draws any itself."""

from __future__ import annotations

from typing import Protocol


class Entropy(Protocol):
    """Given by the shell; a seeded one in simulations."""

    def draw(self, count: int) -> bytes:
        """`count` unpredictable bytes."""
        ...

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """ML-KEM-768 (FIPS 203): (shared secret, ciphertext). ValueError for a bad key."""
        ...
