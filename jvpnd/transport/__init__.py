"""Transports: each turns a path into a descriptor that carries tunnel datagrams."""
