"""How `jvpnd` begins: the configuration, then the workers, then all the rest.

Somebody waits for a restart, and most of it is importing. So little is imported here, and the
workers do theirs while `serve` is imported.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

from jvpnd.config import ConfigError, load
from jvpnd.dataplane.launch import launch

EXIT_OK = 0
EXIT_CONFIG = 2
EXIT_FEATURE = 3


def run(config_file: Path, runtime: Path, check_only: bool) -> int:
    """Run the daemon in the foreground; returns its exit status (docs/cli.md)."""
    try:
        config = load(config_file)
    except ConfigError as error:
        return _failed(EXIT_CONFIG, error)
    if check_only:
        print(f"{config_file}: ok: {config.role} {config.node}")
        return EXIT_OK
    if os.geteuid() != 0:
        why = "must run as root: it creates a TUN device, routes and sockets"
        return _failed(EXIT_FEATURE, why)
    gc.disable()  # what a start makes stays: to look through it again and again only takes time
    launched = launch(config.lanes)
    from jvpnd import serve
    from jvpnd.transport.udp import ListenError

    try:
        serve.run(config_file, config, runtime, launched)
    except serve.WRONG_SETTINGS as error:
        return _failed(EXIT_CONFIG, error)
    except ListenError as error:
        return _failed(EXIT_CONFIG, f"{config_file}: {error}")
    except serve.MISSING as error:
        return _failed(EXIT_FEATURE, error)
    return EXIT_OK


def _failed(status: int, why: object) -> int:
    print(f"jvpnd: {why}", file=sys.stderr)
    return status
