"""QR codes in the terminal."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TextIO

from jvpnd.enrol.errors import EnrolError


def require() -> None:
    """Raises EnrolError where the library is missing."""
    if find_spec("segno") is None:
        raise EnrolError("--qr needs segno: pip install 'jvpn[qr]'")


def draw(text: str, out: TextIO) -> None:
    """As small as it can be: what is on a screen is not dirty."""
    import segno

    segno.make(text, error="l", micro=False, boost_error=False).terminal(out, compact=True)
