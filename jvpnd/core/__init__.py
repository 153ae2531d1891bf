"""The protocol, sans-IO: bytes, time and entropy come in; packets, timers and events go out."""
