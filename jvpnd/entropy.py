"""The randomness that the core is given."""

from __future__ import annotations

import os


class SystemEntropy:
    """The kernel's random source, and encapsulation, which draws from it too."""

    def draw(self, count: int) -> bytes:
        return os.urandom(count)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """ML-KEM-768: (shared secret, ciphertext); ValueError for a malformed key."""
        # here, since a restart needs no handshake, and waits for what it imports
        from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()
