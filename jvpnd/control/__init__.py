"""The control socket: how jvpnctl and a running daemon talk (docs/cli.md)."""
