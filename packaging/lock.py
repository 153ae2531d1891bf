"""Writes requirements.txt: what the package holds besides ourselves, each file by its hash.

Run by the Python that the package is for: versions and wheels are those that its pip chooses, on
PyPI, for the project's dependencies and the extras that the package has.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("quic", "cluster", "metrics", "top", "qr")
# Of rich, for what we do not show: 5 MB; of pbr, which only names versions at run time: 7 MB.
UNUSED = ("markdown-it-py", "mdurl", "pygments", "setuptools")

_HEAD = """\
# Written by `make lock`. For Debian 12 on amd64.
--only-binary=:all:
"""


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS:
        wanted += project["optional-dependencies"][extra]
    rows = sorted(_row(item) for item in _resolve(wanted))
    used = (row for row in rows if not row.startswith(UNUSED))
    (HERE / "requirements.txt").write_text(_HEAD + "".join(used))


def _resolve(wanted: list[str]) -> list[dict[str, object]]:
    """What pip would install, from PyPI whatever else is configured here."""
    command = (
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--index-url", "https://pypi.org/simple", "--only-binary", ":all:"),
        *("--report", "-", *wanted),
    )
    local = ("PIP_CONSTRAINT", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")
    env = {key: value for key, value in os.environ.items() if key not in local}
    env["PIP_CONFIG_FILE"] = os.devnull
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, env=env)
    return json.loads(done.stdout)["install"]


def _row(item: dict) -> str:
    name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name}=={version} --hash=sha256:{digest}\n"


if __name__ == "__main__":
    main()
