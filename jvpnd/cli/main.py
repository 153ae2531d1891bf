"""jvpnctl: asks the running daemon, and makes keys. docs/cli.md.

Exit status: 0; 1 the daemon says no; 2 usage, or a bad configuration or key; 3 it is not running.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import os
import re
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TextIO

import click

from jvpnd import __version__
from jvpnd.cli import render, top
from jvpnd.cli.clients import client
from jvpnd.cli.cluster import cluster, drain
from jvpnd.cli.dns import dns
from jvpnd.cli.doctor import doctor
from jvpnd.cli.init import init
from jvpnd.cli.killswitch import kill_switch
from jvpnd.cli.options import (
    Options,
    client_option,
    is_open_to_others,
    json_option,
    session_option,
    since_option,
)
from jvpnd.cli.reload import reload
from jvpnd.config import ConfigError, load, load_policy
from jvpnd.control.client import ControlClient, NotRunning
from jvpnd.control.protocol import CONFIG_INVALID, SOCKET_PATH, Refused
from jvpnd.core.noise import public_key
from jvpnd.core.policy import Policy
from jvpnd.core.wire import KEY_LEN
from jvpnd.enrol.errors import EnrolError
from jvpnd.enrol.keys import new_key
from jvpnd.observe.chart import path_samples
from jvpnd.observe.filter import REASONS, TYPES
from jvpnd.observe.page import page
from jvpnd.observe.report import report as make_report
from jvpnd.observe.timeline import timeline as make_timeline

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_NOT_RUNNING = 3


class Tool(click.Group):
    """Turns what may go wrong into one line and an exit status."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Refused as error:
            _fail(error, EXIT_USAGE if error.reason == CONFIG_INVALID else EXIT_REFUSED)
        except (ConfigError, EnrolError) as error:
            _fail(error, EXIT_USAGE)
        except NotRunning as error:
            _fail(error, EXIT_NOT_RUNNING)


def _fail(error: Exception, status: int) -> NoReturn:
    click.echo(f"jvpnctl: {error}", err=True)
    sys.exit(status)


@click.group(cls=Tool, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--socket",
    type=click.Path(path_type=Path, readable=False),  # who may not open it is told better
    default=Path(SOCKET_PATH),
    show_default=True,
    help="The daemon's control socket.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.version_option(__version__, prog_name="jvpnctl")
@click.pass_context
def main(ctx: click.Context, socket: Path, as_json: bool) -> None:
    """Steer and watch the Jumping VPN daemon, and make its keys."""
    ctx.obj = Options(socket, as_json)
    if os.environ.get("NO_COLOR"):
        ctx.color = False


main.add_command(kill_switch)
main.add_command(dns)


# --- watching ---


@main.command()
@json_option
@click.pass_obj
def status(options: Options) -> None:
    """Session, binding, paths and traffic at a glance."""
    options.show(options.ask("status"), render.status)


@main.command()
@json_option
@click.pass_obj
def sessions(options: Options) -> None:
    """The sessions: a client has one, a gateway one for each client."""
    options.show(options.ask("sessions"), render.sessions)


@main.command()
@json_option
@click.pass_obj
def paths(options: Options) -> None:
    """A client's paths to the gateway and how good they are."""
    options.show(options.ask("paths"), render.paths)


@main.command()
@click.option("--follow", "-f", is_flag=True, help="Go on with events as they happen.")
@session_option
@client_option
@click.option(
    "--type", "types", metavar="TYPE", type=click.Choice(TYPES),
    multiple=True, help="Only events of this type; several times: of any of them.",
)
@click.option(
    "--reason", "reasons", metavar="CODE", type=click.Choice(REASONS),
    multiple=True, help="Only those with this reason code; several times: any of them.",
)
@since_option
@click.option("--limit", "-n", type=click.IntRange(min=1), help="Only the newest of the past.")
@json_option
@click.pass_obj
def events(options: Options, /, follow: bool, **wanted: Any) -> None:
    """What happened, oldest first, one line each (docs/events.md).

    Where several options are given an event has to fit all of them.
    """
    try:
        with ControlClient(options.socket) as client:
            for row in client.stream("events", follow, **wanted):
                click.echo(json.dumps(row) if options.as_json else render.event(row))
    except KeyboardInterrupt:  # how one stops following
        pass


@main.command()
@click.argument("session", metavar="[ID]", required=False)
@click.option(
    "--html", metavar="FILE", type=click.File("w", encoding="utf-8", lazy=True),
    help="Write a page with a drawing to FILE instead (- is standard output).",
)
@json_option
@click.pass_obj
def timeline(options: Options, session: str | None, html: TextIO | None) -> None:
    """Each session's switches, reasons, recovery times and limits. ID may be how it begins."""
    found = make_timeline(options.ask("timeline", id=session), session)
    if session is not None and not found.sessions:
        raise Refused("SESSION_NOT_FOUND", f"the log has no event of a session {session}")
    if html is not None:
        samples, node = path_samples(options.ask("samples")), options.ask("status")["node"]
        html.write(page(found, samples, node, time.time_ns() // 1_000_000))
        return
    options.show(found.as_json() if options.as_json else found, render.timeline)


@main.command()
@click.argument("session", metavar="[ID]", required=False)
@client_option
@since_option
@json_option
@click.pass_obj
def report(
    options: Options, session: str | None, client: str | None, since_ms: int | None
) -> None:
    """How well sessions recovered: how often, why, and how long it took. ID may be how it begins.

    A client knows how long nothing carried its traffic (OUTAGE), a gateway only how long a move
    took.
    """
    found = make_report(options.ask("timeline", id=session), session, client, since_ms or 0)
    options.show(found.as_json() if options.as_json else found, render.report)


@main.command("top")
@click.option(
    "--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True,
    help="Seconds between two looks.",
)
@click.option("--rows", type=click.IntRange(1, 500), help="At most so many sessions and paths.")
@click.option("--once", is_flag=True, help="Print one look and end; for a pipe, or a script.")
@json_option
@click.pass_obj
def top_command(options: Options, interval: float, rows: int | None, once: bool) -> None:
    """Sessions, paths and rates as they are, the busiest first. Ctrl-C ends it.

    Needs a terminal and rich (`pip install 'jvpn[top]'`), but for --once.
    """
    interval_ms = round(interval * 1000)
    if once:
        options.show(top.once(options.socket, interval_ms, rows), top.render)
        return
    if options.as_json:
        raise click.UsageError("--json goes with --once")
    if not sys.stdout.isatty():
        raise click.UsageError("standard output is no terminal: use --once")
    if find_spec("rich") is None:
        _fail(ValueError("top needs rich: pip install 'jvpn[top]' (or use --once)"), EXIT_USAGE)
    top.live(options.socket, interval_ms, rows)


@main.group()
def policy() -> None:
    """The bounds within which a session recovers."""


@policy.command("show")
@json_option
@click.pass_obj
def policy_show(options: Options) -> None:
    """The policy in force."""
    options.show(options.ask("policy"), render.policy)


@policy.command("check")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@json_option
@click.pass_obj
def policy_check(options: Options, file: Path) -> None:
    """Check the [policy] table of FILE: a whole configuration, or a file with nothing else."""
    answer = {"file": str(file), "policy": asdict(Policy.from_table(load_policy(file)))}
    options.show(answer, lambda row: f"{row['file']}: ok")


@policy.command("apply")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@json_option
@click.pass_obj
def policy_apply(options: Options, file: Path) -> None:
    """Put the [policy] table of FILE in force, for running sessions too, without a restart.

    The daemon takes all of it or nothing. The configuration file is not changed: what is to hold
    after a restart has to stand there as well.
    """
    answer = options.ask("policy_apply", table=load_policy(file))
    options.show(answer, lambda row: f"{file}: in force as version {row['version']}")


# --- steering ---


@main.command()
@click.argument("path", required=False)
@click.option("--best", is_flag=True, help="To the best other path.")
@json_option
@click.pass_obj
def switch(options: Options, path: str | None, best: bool) -> None:
    """Move the session to PATH, whose id may be shortened (`wwan0`). Make before break."""
    if (path is None) != best:
        raise click.UsageError("give either a PATH or --best")
    if path is not None:
        path = _whole(path, [row["id"] for row in options.ask("paths")], "path")
    answer = options.ask("switch", path=path)
    options.show(answer, lambda row: f"ordered: the session is {row['state']}")


main.add_command(reload)
main.add_command(drain)
main.add_command(cluster)


@main.command()
@click.argument("session", metavar="ID")
@json_option
@click.pass_obj
def terminate(options: Options, session: str) -> None:
    """End a session for good. ID may be how it begins."""
    known = [row["id"] for row in options.ask("sessions") if row["id"]]
    answer = options.ask("terminate", id=_whole(session, known, "session"))
    options.show(answer, lambda row: f"terminated {row['terminated']}")


def _whole(short: str, known: list[str], what: str) -> str:
    """The one known id that begins so; `short` as it is where there is none: the daemon says no."""
    found = [name for name in known if short and name.startswith(short)]
    if short in found or not found:
        return short
    if len(found) > 1:
        raise click.UsageError(f"{what} {short!r} may be any of: {', '.join(found)}")
    return found[0]


@main.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@click.option("--follow", "-f", is_flag=True, help="Go on until interrupted.")
@click.pass_obj
def record(options: Options, file: Path, follow: bool) -> None:
    """Write what the client was told and decided lately to FILE, for `jvpnctl replay`.

    FILE is new and for its owner alone: it holds the keys of the sessions in it, but neither the
    private key nor the pre-shared one.
    """
    try:
        out = os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")
    except OSError as error:
        _fail(ValueError(f"{file}: {error.strerror} (allowed: a new file)"), EXIT_USAGE)
    count = 0
    with out, ControlClient(options.socket) as client, contextlib.suppress(KeyboardInterrupt):
        for line in client.stream("record", follow=follow):
            out.write(f"{line}\n")
            count += 1
    click.echo(f"{file}: {count} lines")


# --- enrolment ---

main.add_command(init)
main.add_command(client)
main.add_command(doctor)

# --- keys and files; no daemon needed ---


@main.command()
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@json_option
@click.pass_obj
def replay(options: Options, file: Path) -> None:
    """Run a recording through the core again: does it decide the same? Needs no daemon.

    Exit status 0 if every decision comes out identical, 1 with the first difference if not.
    """
    from jvpnd.recording import player  # the whole core; only here is it needed

    try:
        with file.open(encoding="utf-8", errors="replace") as lines:
            found = player.replay(lines)
    except OSError as error:
        _fail(ValueError(f"{file}: {error.strerror}"), EXIT_USAGE)
    except player.RecordingError as error:
        _fail(ValueError(f"{file}: {error}"), EXIT_USAGE)
    options.show(asdict(found), lambda _: render.replay(found))
    if found.difference is not None:
        sys.exit(EXIT_REFUSED)


@main.group()
def audit() -> None:
    """The audit trail."""


@audit.command("verify")
@click.argument(
    "files", metavar="FILE...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("--head", metavar="HASH", help="The hash of a line that must be there.")
@json_option
@click.pass_obj
def audit_verify(options: Options, files: tuple[Path, ...], head: str | None) -> None:
    """Check the chain of an audit trail: FILEs in any order, or its folder. Needs no daemon.

    Exit status 0 if every line is as it was written, 1 with the first that is changed, missing or
    out of order. Whether lines were cut off at the very end only HASH can tell, which an earlier
    `audit verify` or `status` has shown.
    """
    from jvpnd.observe import verify

    if head is not None and not re.fullmatch("[0-9a-f]{64}", head):
        raise click.BadParameter("must be 64 hexadecimal digits", param_hint="--head")
    try:
        is_folder = len(files) == 1 and files[0].is_dir()
        trail = verify.trail_in(files[0]) if is_folder else verify.in_order(files)
        found = verify.verify(trail, head)
    except OSError as error:
        _fail(ValueError(f"{error.filename}: {error.strerror}"), EXIT_USAGE)
    except ValueError as error:
        _fail(error, EXIT_USAGE)
    options.show(asdict(found), lambda _: render.audit(found))
    if found.finding is not None:
        sys.exit(EXIT_REFUSED)


@main.command()
def keygen() -> None:
    """Print a new private key, as `wg genkey` does."""
    if is_open_to_others(sys.stdout):
        click.echo("jvpnctl: warning: others may read this file; use umask 077", err=True)
    click.echo(new_key())


@main.command()
def pubkey() -> None:
    """Turn the private key on standard input into its public key, as `wg pubkey` does."""
    text = sys.stdin.buffer.read(4096).strip()
    try:
        secret = base64.b64decode(text, validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != KEY_LEN:
        _fail(ValueError("standard input is not a key: base64 of 32 bytes"), EXIT_USAGE)
    click.echo(base64.b64encode(public_key(secret)).decode())


@main.group("config")
def config_group() -> None:
    """The configuration file."""


@config_group.command("check")
@click.argument("file", type=click.Path(path_type=Path, readable=False))
@json_option
@click.pass_obj
def config_check(options: Options, file: Path) -> None:
    """Read FILE as jvpnd would and say what is wrong with it."""
    found = load(file)
    answer = {"file": str(file), "role": found.role, "node": found.node}
    options.show(answer, lambda row: f"{row['file']}: ok: {row['role']} {row['node']}")


if __name__ == "__main__":
    main()
