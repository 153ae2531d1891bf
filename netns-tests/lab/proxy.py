"""An HTTP proxy behind each uplink: tinyproxy on the router, in the foreground, no service."""

from __future__ import annotations

import contextlib
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab.namespace import Namespace
from lab.stage import until
from lab.topology import Lab

HOST, PORT = "198.51.100.8", 3128  # the same address on every router
URL = f"http://{HOST}:{PORT}"
USER, PASSWORD = "guest", "let-me-in"
URL_WITH_PASSWORD = f"http://{USER}:{PASSWORD}@{HOST}:{PORT}"


def _config(password: bool, target_port: int) -> str:
    return (
        f"Port {PORT}\nListen {HOST}\nTimeout 600\nMaxClients 100\nLogLevel Info\n"
        f"ConnectPort {target_port}\n" + (f"BasicAuth {USER} {PASSWORD}\n" if password else "")
    )


def _answers(router: Namespace) -> bool:
    with router.within(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
        return sock.connect_ex((HOST, PORT)) == 0


@contextlib.contextmanager
def proxies(lab: Lab, password: bool = False, target_port: int = 443) -> Iterator[None]:
    """A proxy on each router while inside; one that wants a password, or lets clients go to one
    port only."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jvpn-lab-")))
        config = folder / "tinyproxy.conf"
        config.write_text(_config(password, target_port))
        for router in (lab.a.router, lab.b.router):
            router.ip("addr", "replace", f"{HOST}/32", "dev", "lo")
            log = stack.enter_context((folder / f"{router.name}.log").open("w"))
            command = ("tinyproxy", "-d", "-c", str(config))
            process = router.popen(*command, stdout=log.fileno(), stderr=log.fileno())
            stack.callback(process.wait)
            stack.callback(process.kill)
            until(lambda router=router: _answers(router), "the proxy answers")
        yield
