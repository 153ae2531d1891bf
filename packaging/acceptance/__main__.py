"""The package as its user meets it, on two booted Debians: a gateway, a client with two uplinks.

`python packaging/acceptance PACKAGE NEWER_PACKAGE`, as root, with netns-tests on PYTHONPATH. Says
what it did, step by step, with what it measured; the first thing that is wrong ends it with status
1. Where such systems cannot be had, it says what is missing, and that nothing was tried.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lab.namespace import sweep
from lab.topology import Lab
from machine import Machine, base_system, private_mounts
from story import Story

NEEDED = ("systemd-nspawn", "mmdebstrap", "nsenter", "mount")


def main(package: Path, newer: Path) -> int:
    missing = [program for program in NEEDED if shutil.which(program) is None]
    if missing:
        print(f"not tried: no booted system can be had here: {', '.join(missing)} missing")
        return 0
    try:
        private_mounts()
    except OSError as error:
        print(f"not tried: no booted system can be had here: {error}")
        return 0
    with ExitStack() as stack:
        stack.callback(sweep)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jvpn-acceptance-")))
        with told("a small Debian is made"):
            base_system(folder / "base")
        lab = stack.enter_context(Lab())
        stack.callback(unmount, folder)
        gateway = Machine("gateway", folder / "base", folder, lab.gateway.name)
        stack.enter_context(gateway)
        client = stack.enter_context(Machine("client", folder / "base", folder, lab.client.name))
        story = Story(lab, client, gateway, package, newer)
        try:
            for step in story.steps():
                with told(step.__doc__ or step.__name__) as figures:
                    figures += step() or []
        except Exception:
            for machine in (client, gateway):
                print(f"--- {machine.name}")
                print(machine.run("journalctl", "-b", "-n", "60", "--no-pager", check=False))
            raise
    return 0


@contextmanager
def told(what: str) -> Iterator[list[str]]:
    """Say it when it is done, and how long it took."""
    began, figures = time.monotonic(), list[str]()
    try:
        yield figures
    except BaseException:
        print(f"FAIL {what}", flush=True)
        raise
    detail = f" ({'; '.join(figures)})" if figures else ""
    print(f"  ok {what}{detail}, {time.monotonic() - began:.1f} s", flush=True)


def unmount(folder: Path) -> None:
    """Everything that is mounted below, so that it can be removed."""
    mounted = re.findall(rf" ({folder}/\S+) ", Path("/proc/self/mountinfo").read_text())
    for where in sorted(mounted, reverse=True):
        subprocess.run(("umount", "--lazy", where), check=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: acceptance PACKAGE NEWER_PACKAGE")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
