"""The laboratory: network namespaces, user-space wires, real daemons and real traffic."""
