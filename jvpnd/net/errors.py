"""Failures of the host's network that a user can mend."""

from __future__ import annotations


class MissingFeature(Exception):  # noqa: N818 - what is missing, not an error of ours
    """A privilege, device or kernel feature is missing; the daemon says so and exits 3."""
