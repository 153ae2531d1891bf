"""Why something cannot be enrolled."""

from __future__ import annotations


class EnrolError(Exception):
    """One line that says what, where, and what to do."""
