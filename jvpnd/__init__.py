"""Jumping VPN: one session, replaceable transports."""

__version__ = "0.1.0"
