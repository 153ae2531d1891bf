"""One exchange of content through a tunnel: TCP both ways at once, datagrams of any size, GSO.

Both ends are processes inside namespaces (`python -m lab.transfer ...`). Content is random, and
each end compares what it got with what the other one says it sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import threading
from pathlib import Path

from lab.namespace import Namespace

TCP_PORT, UDP_PORT = 7779, 7780
TIMEOUT_S = 20
SIZES = (0, 1, 2, 64, 1000, 1351, 1352, 1371, 1372, 1373, 1452, 3000, 8000, 60000)
SEGMENT, SEGMENTS, ODD = 1111, 25, 333  # one send that the kernel cuts, the last piece shorter
_UDP_SEGMENT = 103  # linux/udp.h
_LENGTH = struct.Struct("!Q")
_DIGEST_LEN = 32


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# --- TCP: length, content, digest in each direction, then one byte: what came was right ---


def _exchange(connection: socket.socket, size: int) -> bool:
    """Send `size` random bytes and receive the other end's; whether both arrived as sent."""
    content = os.urandom(size)
    digest = hashlib.sha256(content).digest()
    message = _LENGTH.pack(size) + content + digest
    sending = threading.Thread(target=connection.sendall, args=(message,))
    sending.start()
    right = _receive(connection)
    sending.join()
    connection.sendall(b"\1" if right else b"\0")
    return right and _exactly(connection, 1) == b"\1"


def _receive(connection: socket.socket) -> bool:
    (left,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    found = hashlib.sha256()
    while left:
        data = connection.recv(min(left, 1 << 18))
        if not data:
            return False
        found.update(data)
        left -= len(data)
    return _exactly(connection, _DIGEST_LEN) == found.digest()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := connection.recv(count - len(data))):
        data += more
    return data


# --- UDP: each datagram comes back as it was ---


def _echoed(sock: socket.socket, size: int) -> bool:
    sent = os.urandom(size)
    sock.send(sent)
    return sock.recv(1 << 16) == sent


def _burst_echoed(sock: socket.socket) -> bool:
    """One GSO send: the datagrams that it means come back, each whole."""
    sent = os.urandom(SEGMENT * SEGMENTS + ODD)
    segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, struct.pack("=H", SEGMENT))
    sock.sendmsg([sent], [segment])
    wanted = [sent[at : at + SEGMENT] for at in range(0, len(sent), SEGMENT)]
    return sorted(sock.recv(1 << 16) for _ in wanted) == sorted(wanted)


def serve(address: str, size: int) -> None:
    family = _family(address)
    with (
        socket.create_server((address, TCP_PORT), family=family) as server,
        socket.socket(family, socket.SOCK_DGRAM) as datagrams,
    ):
        datagrams.bind((address, UDP_PORT))
        threading.Thread(target=_serve_echo, args=(datagrams,), daemon=True).start()
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection:
                connection.settimeout(TIMEOUT_S)
                with contextlib.suppress(OSError):  # the other end tells
                    _exchange(connection, size)


def _serve_echo(sock: socket.socket) -> None:
    while True:
        data, sender = sock.recvfrom(1 << 16)
        with contextlib.suppress(OSError):
            sock.sendto(data, sender)


def run(address: str, size: int) -> None:
    """Print as JSON what went wrong, nothing if nothing did."""
    problems = []
    with socket.create_connection((address, TCP_PORT), TIMEOUT_S) as connection:
        if not _exchange(connection, size):
            problems.append("TCP content differs")
    with socket.socket(_family(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect((address, UDP_PORT))
        problems += [f"datagram of {n} bytes differs" for n in SIZES if not _echoed(sock, n)]
        if not _burst_echoed(sock):
            problems.append("segmented datagrams differ")
    print(json.dumps(problems))


def transfer(client: Namespace, server: Namespace, address: str, size: int) -> list[str]:
    """Exchange `size` bytes of TCP each way and datagrams of SIZES; what went wrong."""
    module = (sys.executable, "-m", "lab.transfer")
    env = {"PYTHONPATH": str(Path(__file__).parents[1])}
    serving = server.popen(*module, "serve", address, str(size), env=env)
    try:
        assert serving.stdout is not None
        assert serving.stdout.readline() == "ready\n"
        running = client.popen(*module, "run", address, str(size), env=env)
        out, _ = running.communicate(timeout=3 * TIMEOUT_S)
        assert running.returncode == 0, f"the exchange with {address} failed"
        problems: list[str] = json.loads(out)
        return problems
    finally:
        serving.kill()
        serving.wait()


if __name__ == "__main__":
    (serve if sys.argv[1] == "serve" else run)(sys.argv[2], int(sys.argv[3]))
