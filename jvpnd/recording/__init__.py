"""What the client agent was told, kept so that it can be told again (docs/replay.md)."""
