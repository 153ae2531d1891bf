"""For all unit tests: how long an example takes says something of the machine, not of the code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("jvpn", deadline=None)
settings.load_profile("jvpn")
