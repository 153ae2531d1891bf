"""jvpnctl as a user runs it: a process of its own, on a real control socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import fcntl
import itertools
import json
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import pytest

from jvpnd.cli import render, text
from jvpnd.control.server import Handler, Refused
from jvpnd.core.policy import Policy, PolicyError
from jvpnd.observe.log import EventLog

from .served import Served, served

Args = Mapping[str, Any]
SESSION = "5f0c1a2b" + "00" * 12
OTHER = "5f0d0000" + "11" * 12
WIFI, LTE = "wlan0/udp/203.0.113.7:7700", "wwan0/udp/203.0.113.7:7700"
TRAFFIC = {
    "tx_bytes": 1_288_490_188,
    "rx_bytes": 512,
    "tx_packets": 1_234_567,
    "rx_packets": 1,
    "dropped": {"bad_tag": 3, "replayed": 0},
}
BINDING = {
    "path": WIFI,
    "transport": "udp",
    "uplink": "wlan0",
    "local": "192.0.2.5:40000",
    "remote": "203.0.113.7:7700",
}
OFFLOADS = {
    "offloads": {"vnet": True, "tso": False, "uso": False, "udp_gso": True, "aes": False},
    "offloads_off": {
        "tso": "disabled by [debug]",
        "uso": "missing in the kernel",
        "aes": "disabled by [debug]",
    },
}


def session_row(session_id: str = SESSION, **more: Any) -> dict[str, Any]:
    return {
        "id": session_id,
        "state": "ATTACHED",
        "state_version": 3,
        "epoch": 4,
        "attached_since_ms": 192_500,
        "switches": 1,
        "rekeys": 2,
        "suite": "AES_256_GCM",
        "inner_addresses": ["10.77.0.2/24", "fd77::2/64"],
        "binding": BINDING,
        **more,
    }


def path_row(path: str, state: str, rtt_ms: float | None) -> dict[str, Any]:
    return {
        "id": path,
        "transport": "udp",
        "uplink": path.split("/")[0],
        "local": "192.0.2.5",
        "remote": "203.0.113.7:7700",
        "state": state,
        "rtt_ms": rtt_ms,
        "loss": 0.015,
        "jitter_ms": 0.42,
        "last_heard_ms": None if rtt_ms is None else 80,
    }


PATHS = [path_row(WIFI, "bound", 12.25), path_row(LTE, "new", None)]
CLIENT = {
    "role": "client",
    "node": "laptop",
    "state": "ATTACHED",
    "session": session_row(),
    "paths": PATHS,
    "traffic": TRAFFIC,
    "policy_version": 1,
    "interface": "jvpn0",
    **OFFLOADS,
}
GATEWAY = {
    "role": "gateway",
    "node": "gw1",
    "state": "LISTENING",
    "listen": ["203.0.113.7:7700"],
    "session": None,
    "sessions": [
        session_row(client="laptop", owner="gw1", last_heard_ms=40, traffic=TRAFFIC),
        session_row(OTHER, client="phone\x1b[2J", owner="gw1", last_heard_ms=None, traffic=TRAFFIC),
    ],
    "clients_configured": 5,
    "paths": [],
    "traffic": TRAFFIC,
    "policy_version": 1,
    "interface": "jvpn0",
    **OFFLOADS,
}


def top_look(status: dict[str, Any], tx_bytes_per_s: int, rows: int) -> dict[str, Any]:
    """As jvpnd/top.py answers."""
    rates = {"tx_bytes_per_s": tx_bytes_per_s, "rx_bytes_per_s": 0}
    rates |= {"tx_packets_per_s": 0, "rx_packets_per_s": 1234}
    sessions = status.get("sessions") or [status["session"]]
    return {
        "role": status["role"],
        "node": status["node"],
        "interval_ms": 1000,
        "rates": rates,
        "sessions": [{**row, "rates": rates} for row in sessions][:rows],
        "states": {"ATTACHED": len(sessions)},
        "paths": status["paths"][:rows],
        "paths_in_all": len(status["paths"]),
    }


EVENTS = {
    "types": [],
    "reasons": [],
    "session": None,
    "client": None,
    "since_ms": None,
    "limit": None,
}


class Daemon:
    """Answers as a daemon does, and remembers what it was asked to do."""

    def __init__(self, status: dict[str, Any]) -> None:
        self.orders: list[tuple[str, Any]] = []
        self.log = EventLog("laptop", lambda: 1_700_000_000_123)
        self.handlers: dict[str, Handler] = {
            "events": self._events,
            "top": self._top,
            "policy": self._order("policy", lambda _: asdict(Policy())),
            "policy_apply": self._order("policy_apply", self._apply),
            "samples": self._order("samples", lambda _: {WIFI: [[1_700_000_000_000, *[0.1] * 5]]}),
            "status": self._order("status", lambda _: status),
            "paths": self._order("paths", self._paths),
            "sessions": self._order("sessions", lambda _: self._sessions(status)),
            "switch": self._order("switch", self._switch),
            "terminate": self._order("terminate", self._terminate),
            "timeline": self._order("timeline", lambda args: self.log.recent(args["id"])),
        }
        self._status = status

    def _order(self, name: str, answer: Any) -> Handler:
        async def handler(args: Args) -> Any:
            self.orders.append((name, dict(args)))
            return answer(args)

        return handler

    def _apply(self, args: Args) -> Any:
        try:
            return asdict(Policy().successor(args["table"]))
        except PolicyError as error:
            raise Refused("POLICY_INVALID", f"policy.{error}") from None

    def _sessions(self, status: dict[str, Any]) -> list[Any]:
        return status["sessions"] if status["role"] == "gateway" else [status["session"]]

    def _paths(self, _: Args) -> list[Any]:
        if self._status["role"] == "gateway":
            raise Refused("WRONG_ROLE", "a gateway has no paths of its own: ask the client")
        return PATHS

    def _switch(self, args: Args) -> Any:
        if args["path"] not in (None, WIFI, LTE):
            raise Refused("POLICY_DENY", f"no path {args['path']}")
        return session_row(state="RECOVERING")

    def _terminate(self, args: Args) -> Any:
        if args["id"] not in (SESSION, OTHER):
            raise Refused("SESSION_NOT_FOUND", f"no session {args['id']}")
        return {"terminated": args["id"]}

    async def _top(self, args: Args) -> AsyncIterator[Any]:
        self.orders.append(("top", dict(args)))
        for number in itertools.count():
            yield top_look(self._status, 1000 * number, args["rows"])
            await asyncio.sleep(0.01)

    async def _events(self, args: Args) -> AsyncIterator[Any]:
        self.orders.append(("events", dict(args)))
        with self.log.subscribe() as coming:
            for event in self.log.recent(args["session"], args["limit"]):
                yield event
            if args["follow"]:
                async for event in coming:
                    yield event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "control.sock"


@pytest.fixture
def daemon() -> Daemon:
    found = Daemon(CLIENT)
    found.log.append("SESSION_CREATED", SESSION, "laptop", reason="HANDSHAKE_OK")
    found.log.append(
        *("STATE_CHANGE", SESSION, "laptop", "ATTACHED", "RECOVERING", "TRANSPORT_DEAD", 2, 1),
        {"path": WIFI, "why": "ENETDOWN: Network is down"},
    )
    found.log.append("SECURITY_EVENT", reason="AUTH_FAIL", details={"remote": "192.0.2.1:9"})
    return found


@pytest.fixture
def host(path: Path, daemon: Daemon) -> Iterator[Served]:
    with served(path, daemon.handlers) as running:
        yield running


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jvpnd.cli.main", *arguments]


def jvpnctl(*arguments: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **env},
    )


def ctl(path: Path, *arguments: str) -> str:
    """The output of a command that must go well."""
    done = jvpnctl("--socket", str(path), *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


# --- watching ---


@pytest.mark.usefixtures("host")
def test_status_as_json_is_what_the_daemon_said_wherever_the_option_stands(path: Path) -> None:
    assert json.loads(ctl(path, "--json", "status")) == CLIENT
    assert json.loads(ctl(path, "status", "--json")) == CLIENT


@pytest.mark.usefixtures("host")
def test_status_of_a_client_in_words(path: Path) -> None:
    out = ctl(path, "status")
    assert out.startswith("client laptop: ATTACHED on jvpn0\n")
    for words in (
        f"session   {SESSION}\n",
        f"bound to  {WIFI} from 192.0.2.5:40000\n",
        "3m 12s ago (epoch 4, 1 switch, 2 rekeys)",
        "1.2 GiB (1,234,567 packets)",
        "512 B (1 packet)",
        "bad_tag 3\n",
        "vnet udp_gso; disabled by [debug]: tso aes; missing in the kernel: uso\n",
        "12.2 ms",
        "1.5%",
        "never",
    ):
        assert words in out
    assert "replayed" not in out
    assert "\x1b" not in out


def test_status_without_a_binding_or_a_session_still_renders(path: Path) -> None:
    unbound = {**CLIENT, "session": session_row(state="RECOVERING", binding=None)}
    with served(path, Daemon(unbound).handlers):
        out = ctl(path, "status")
    assert re.search(r"bound to +none\n +last attached +3m 12s ago", out)
    bare = {**CLIENT, "state": "BIRTH", "session": None, "paths": [], "resting": True}
    with served(path, Daemon(bare).handlers):
        out = ctl(path, "status")
    assert "client laptop: BIRTH" in out
    assert "no paths" in out
    assert "no new session until jvpnd is started again" in out


def test_status_of_a_gateway_lists_its_clients_and_nothing_moves_the_cursor(path: Path) -> None:
    with served(path, Daemon(GATEWAY).handlers):
        out = ctl(path, "status")
    assert out.startswith("gateway gw1: LISTENING on jvpn0\n")
    assert "2 of 5 clients" in out
    assert "\x1b" not in out
    assert "phone?[2J" in out
    header, laptop, phone = out.splitlines()[-3:]
    assert header.startswith("CLIENT")
    for column in ("SESSION", "STATE", "REMOTE", "HEARD", "SENT"):
        assert laptop[header.index(column) - 1] == phone[header.index(column) - 1] == " "
        assert laptop[header.index(column)] != " "


def test_status_of_a_gateway_says_why_its_table_takes_nothing(path: Path) -> None:
    for problem in (None, "No such file\x1b[2J"):
        with served(path, Daemon({**GATEWAY, "store": {"problem": problem}}).handlers):
            out = ctl(path, "status")
        told = re.search(r"store +nothing new is bound: No such file\?\[2J\n", out)
        assert (told is not None) == (problem is not None)


@pytest.mark.usefixtures("host")
def test_sessions_and_paths(path: Path) -> None:
    assert SESSION[:8] in ctl(path, "sessions")
    assert json.loads(ctl(path, "--json", "paths")) == PATHS
    assert WIFI in ctl(path, "paths")


def test_a_closed_path_says_why() -> None:
    why = "the proxy refused: 407 Proxy Authentication Required"
    rows = [path_row(WIFI, "bound", 12.25), path_row(LTE, "closed", None) | {"why": why}]
    header, _, closed = map(click.unstyle, render.paths(rows).splitlines())
    assert header.endswith("  WHY")
    assert closed.index(why) == header.index("WHY")
    assert "WHY" not in render.paths(rows[:1])


@pytest.mark.usefixtures("host")
def test_the_policy_in_force(path: Path) -> None:
    out = ctl(path, "policy", "show")
    assert re.search(r"session_ttl_ms +86400000 +1d 0h\n", out)
    assert re.search(r"latency_floor_ms +0 +off\n", out)
    assert json.loads(ctl(path, "policy", "show", "--json"))["max_switches_per_minute"] == 8


def written(folder: Path, text: str) -> str:
    file = folder / "policy.toml"
    file.write_text(text)
    return str(file)


@pytest.mark.usefixtures("host")
def test_a_policy_is_applied_from_a_file_with_its_table(path: Path, daemon: Daemon) -> None:
    file = written(path.parent, "[policy]\ndrain_ms = 7\n")
    out = ctl(path, "policy", "apply", file)
    assert out == f"{file}: in force as version 2\n"
    assert daemon.orders == [("policy_apply", {"table": {"drain_ms": 7}})]
    assert json.loads(ctl(path, "--json", "policy", "apply", file))["drain_ms"] == 7


@pytest.mark.usefixtures("host")
def test_a_policy_that_the_daemon_refuses_is_exit_1(path: Path) -> None:
    file = written(path.parent, "[policy]\nversion = 1\n")
    done = jvpnctl("--socket", str(path), "policy", "apply", file)
    assert done.returncode == 1
    assert "POLICY_INVALID: policy.version: 1 is not above 1" in done.stderr


@pytest.mark.usefixtures("host")
def test_a_timeline_as_a_page(path: Path) -> None:
    file = path.parent / "page.html"
    assert ctl(path, "timeline", "--html", str(file)) == ""
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert ctl(path, "timeline", "5f0c", "--html", "-").count("<section>") == 1


@pytest.mark.usefixtures("host")
def test_events_one_a_line(path: Path, daemon: Daemon) -> None:
    lines = [json.loads(line) for line in ctl(path, "--json", "events").splitlines()]
    assert lines == daemon.log.recent()
    told = ctl(path, "events").splitlines()
    assert len(told) == 3
    assert "ATTACHED -> RECOVERING  TRANSPORT_DEAD  laptop 5f0c1a2b" in told[1]
    assert "why=ENETDOWN: Network is down" in told[1]
    assert daemon.orders[-1] == ("events", {"follow": False, **EVENTS})


@pytest.mark.usefixtures("host")
def test_events_of_a_session_and_only_the_newest(path: Path, daemon: Daemon) -> None:
    (line,) = ctl(path, "events", "--session", "5f0c", "-n", "1").splitlines()
    assert "TRANSPORT_DEAD" in line
    assert daemon.orders == [("events", {**EVENTS, "follow": False, "session": "5f0c", "limit": 1})]


@pytest.mark.usefixtures("host")
def test_events_of_a_kind_a_reason_a_client_and_not_too_old(path: Path, daemon: Daemon) -> None:
    before_ms = time.time_ns() // 1_000_000
    options = ["--type", "REKEY", "--type", "STATE_CHANGE", "--reason", "TRANSPORT_DEAD"]
    ctl(path, "events", *options, "--client", "laptop", "--since", "15m", "-n", "9")
    ((_, asked),) = daemon.orders
    since_ms = asked.pop("since_ms")
    assert 0 <= since_ms - (before_ms - 15 * 60_000) < 60_000
    assert asked == {
        "follow": False,
        "types": ["REKEY", "STATE_CHANGE"],
        "reasons": ["TRANSPORT_DEAD"],
        "session": None,
        "client": "laptop",
        "limit": 9,
    }


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--type", "WEATHER", "STATE_CHANGE"),
        ("--reason", "BECAUSE", "TRANSPORT_DEAD"),
        ("--since", "yesterday", "a whole number and s, m, h or d"),
        ("--since", "-5m", "a whole number and s, m, h or d"),
    ],
)
def test_a_filter_that_nothing_could_pass_is_refused(
    tmp_path: Path, option: str, value: str, told: str
) -> None:
    done = jvpnctl("--socket", str(tmp_path / "no"), "events", option, value)
    assert done.returncode == 2
    assert told in done.stderr


# --- top ---


@pytest.mark.usefixtures("host")
def test_top_once_shows_rates_sessions_and_paths_on_a_pipe(path: Path, daemon: Daemon) -> None:
    told = ctl(path, "top", "--once", "--interval", "0.2")
    lines = told.splitlines()
    assert lines[0].startswith("client laptop: 1 ATTACHED   sent 8 kbit/s, received idle, 1,234 p")
    assert "5f0c1a2b  ATTACHED  8 kbit/s  idle" in told
    assert WIFI in told
    assert LTE in told
    assert daemon.orders == [("top", {"follow": False, "interval_ms": 200, "rows": 20})]


def test_top_of_a_gateway_has_a_row_a_client_and_says_how_many_are_left_out(path: Path) -> None:
    with served(path, Daemon(GATEWAY).handlers):
        told = ctl(path, "top", "--once", "--rows", "1")
        both = ctl(path, "top", "--once")
        rows = json.loads(ctl(path, "top", "--once", "--json"))["sessions"]
    assert "gateway gw1: 2 ATTACHED" in told
    assert "and 1 more that are less busy" in told
    assert "phone" not in told
    assert "phone?[2J" in both  # a client's name cannot move the cursor
    assert [row["rates"]["rx_packets_per_s"] for row in rows] == [1234, 1234]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "standard output is no terminal: use --once"),
        (("--json",), "--json goes with --once"),
        (("--once", "--interval", "0.1"), "0.1 is not in the range"),
        (("--once", "--rows", "501"), "501 is not in the range"),
    ],
)
def test_top_where_it_cannot_be_is_refused(
    tmp_path: Path, arguments: tuple[str, ...], told: str
) -> None:
    done = jvpnctl("--socket", str(tmp_path / "no"), "top", *arguments)
    assert done.returncode == 2
    assert told in done.stderr


class Screen:
    """A command on a pseudo terminal, and what it has written there."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 160, 0, 0))
        env = {**os.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(arguments, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        self._output = b""

    def __enter__(self) -> Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # nothing is left of a test that failed
        self.process.wait()

    def wait_for(self, words: str) -> str:
        """Until it shows this, from here on."""
        deadline = time.monotonic() + 20
        while words.encode() not in self._output:
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self._ours], [], [], max(0, left_s))
            assert ready, f"no {words!r} in {self._output[-4000:]!r}"
            self._output += os.read(self._ours, 65536)
        before, _, self._output = self._output.partition(words.encode())
        return before.decode()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Its exit status."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        with contextlib.suppress(OSError):  # EIO: the last writer has closed it
            while chunk := os.read(self._ours, 65536):
                self._output += chunk
        os.close(self._ours)
        return self.process.wait(20)


def test_top_follows_on_a_terminal_and_waits_for_a_daemon_that_is_restarted(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with served(path, Daemon(CLIENT).handlers):
            screen = Screen(*command("--socket", str(path), "top", "--interval", "0.2"))
            stack.enter_context(screen)
            screen.wait_for("laptop")
            screen.wait_for("160 kbit/s")  # the 20th look: it goes on
        screen.wait_for("waiting for it")
        with served(path, {}):
            screen.wait_for("STARTING")
        with served(path, Daemon(GATEWAY).handlers):
            screen.wait_for("gw1")
            assert screen.end() == 0


def test_top_without_a_daemon_says_so_and_leaves_the_terminal_alone(path: Path) -> None:
    with Screen(*command("--socket", str(path), "top")) as screen:
        told = screen.wait_for("the daemon is not running")
        assert "\x1b[" not in told
        assert screen.wait() == 3


@pytest.mark.usefixtures("host")
def test_top_without_rich_says_what_to_install_and_once_works(path: Path) -> None:
    program = "import sys; sys.modules['rich'] = None\nfrom jvpnd.cli.main import main; main()"
    bare = (sys.executable, "-c", program, "--socket", str(path), "top")
    with Screen(*bare) as screen:
        screen.wait_for("jvpnctl: top needs rich: pip install 'jvpn[top]'")
        assert screen.wait() == 2
    done = subprocess.run([*bare, "--once"], capture_output=True, text=True, check=True)
    assert "client laptop" in done.stdout


# --- events ---


def test_events_are_followed_until_interrupted(path: Path, daemon: Daemon, host: Served) -> None:
    with subprocess.Popen(
        command("--socket", str(path), "--json", "events", "--follow"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            seen = [json.loads(following.stdout.readline())["seq"] for _ in range(3)]
            host.call(lambda: daemon.log.append("REKEY", SESSION))
            seen.append(json.loads(following.stdout.readline())["seq"])
            assert seen == [1, 2, 3, 4]
            following.send_signal(signal.SIGINT)
            assert following.wait(20) == 0
            assert following.stderr.read() == ""
        finally:
            following.kill()


@pytest.mark.usefixtures("host")
def test_the_timeline_of_all_of_one_and_of_none(path: Path) -> None:
    out = ctl(path, "timeline")
    assert f"session {SESSION}, laptop, RECOVERING" in out
    assert "under way" in out
    assert "AUTH_FAIL" in out
    assert "AUTH_FAIL" not in ctl(path, "timeline", "5f0c")
    (session,) = json.loads(ctl(path, "--json", "timeline", SESSION))["sessions"]
    assert session["recoveries"][0]["cause"] == "TRANSPORT_DEAD"
    none = jvpnctl("--socket", str(path), "timeline", "ffff")
    assert (none.returncode, none.stdout) == (1, "")
    assert "SESSION_NOT_FOUND" in none.stderr


# --- steering ---


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(
    ("said", "sent"), [(LTE, LTE), ("wwan0", LTE), ("wlan0/udp", WIFI), ("--best", None)]
)
def test_switch_names_a_path_in_full_in_short_or_none(
    path: Path, daemon: Daemon, said: str, sent: str | None
) -> None:
    assert ctl(path, "switch", said) == "ordered: the session is RECOVERING\n"
    assert daemon.orders[-1] == ("switch", {"path": sent})


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("said", [[], [WIFI, "--best"], ["w"]])
def test_an_unclear_switch_is_a_usage_error_and_orders_nothing(
    path: Path, daemon: Daemon, said: list[str]
) -> None:
    done = jvpnctl("--socket", str(path), "switch", *said)
    assert done.returncode == 2
    assert "switch" not in [name for name, _ in daemon.orders]


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize("said", ["eth9", ""])
def test_a_refused_switch_exits_1_with_the_reason(path: Path, said: str) -> None:
    done = jvpnctl("--socket", str(path), "switch", said)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"jvpnctl: POLICY_DENY: no path {said}\n"


def test_terminate_finds_the_session_by_how_its_id_begins(path: Path) -> None:
    gateway = Daemon(GATEWAY)
    with served(path, gateway.handlers):
        assert ctl(path, "terminate", "5f0d") == f"terminated {OTHER}\n"
        assert jvpnctl("--socket", str(path), "terminate", "5f0").returncode == 2
        assert jvpnctl("--socket", str(path), "terminate", "").returncode == 1
        assert jvpnctl("--socket", str(path), "terminate", "99").returncode == 1
    ended = [args["id"] for name, args in gateway.orders if name == "terminate"]
    assert ended == [OTHER, "", "99"]


def test_a_gateway_says_that_it_has_no_paths(path: Path) -> None:
    with served(path, Daemon(GATEWAY).handlers):
        done = jvpnctl("--socket", str(path), "paths")
    assert done.returncode == 1
    assert "WRONG_ROLE" in done.stderr


# --- without a daemon ---


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[policy]\nloss_floor = 2\n", "policy.loss_floor: 2 is out of range"),
        ("[policy]\nloss_flor = 0.1\n", "policy.loss_flor: unknown key"),
        ("[polic]\n", "polic: unknown key"),
        ("node = 'x'\n", "policy: is missing"),
        ("[policy\n", "is not TOML"),
    ],
)
@pytest.mark.parametrize("command", ["check", "apply"])
def test_a_wrong_policy_is_told_with_file_key_and_range(
    tmp_path: Path, text: str, told: str, command: str
) -> None:
    file = written(tmp_path, text)
    done = jvpnctl("--socket", str(tmp_path / "none"), "policy", command, file)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{file}: {told}" in done.stderr
    assert "(allowed: " in done.stderr


def test_a_good_policy_needs_no_daemon_to_be_checked(tmp_path: Path) -> None:
    file = written(tmp_path, "[policy]\nmetered_uplinks = ['wwan*']\n")
    done = jvpnctl("policy", "check", file)
    assert (done.returncode, done.stdout) == (0, f"{file}: ok\n")


def test_a_file_that_is_no_recording_is_exit_2(tmp_path: Path) -> None:
    file = written(tmp_path, "{}\n")
    done = jvpnctl("replay", file)
    assert done.returncode == 2
    assert f"{file}: no recording (allowed: a file of jvpnctl record, format 1)" in done.stderr
    assert jvpnctl("replay", str(tmp_path / "none")).returncode == 2


@pytest.mark.parametrize("asked", ["status", "sessions", "paths", "events", "timeline"])
def test_no_daemon_is_exit_3_and_one_line(path: Path, asked: str) -> None:
    done = jvpnctl("--socket", str(path), asked)
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(r"jvpnctl: the daemon is not running: .*\n", done.stderr)


@pytest.mark.skipif(os.geteuid() != 0, reason="has to become somebody else")
def test_who_may_not_open_the_socket_is_told_so() -> None:
    code = (
        "import os, sys; from jvpnd.cli.main import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); main()"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "control.sock"
        with served(path, Daemon(CLIENT).handlers):
            arguments = [sys.executable, "-c", code, "--socket", str(path), "status"]
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("jvpnctl: PERMISSION_DENIED: ")


@pytest.mark.parametrize("said", [["reboot"], ["status", "now"], ["--frobnicate"], ["terminate"]])
def test_bad_usage_is_exit_2(said: list[str]) -> None:
    assert jvpnctl(*said).returncode == 2


def test_a_key_is_32_clamped_bytes_and_new_each_time() -> None:
    first, second = jvpnctl("keygen").stdout, jvpnctl("keygen").stdout
    assert first != second
    key = base64.b64decode(first, validate=False)
    assert (len(key), key[0] & 7, key[31] & 0xC0) == (32, 0, 0x40)
    assert re.fullmatch(r"[A-Za-z0-9+/]{43}=\n", first)


def test_pubkey_is_that_of_rfc_7748() -> None:
    """Section 6.1: Alice's keys."""
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    done = jvpnctl("pubkey", stdin=base64.b64encode(private).decode())
    assert base64.b64decode(done.stdout) == public


@pytest.mark.skipif(shutil.which("wg") is None, reason="compares with wg")
def test_keys_are_those_of_wg() -> None:
    private = jvpnctl("keygen").stdout
    wg = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
    assert jvpnctl("pubkey", stdin=private).stdout == wg.stdout


@pytest.mark.parametrize("said", ["", "short", "A" * 43, "!" * 44, "AAAA" * 20])
def test_what_is_no_key_is_exit_2(said: str) -> None:
    done = jvpnctl("pubkey", stdin=said)
    assert (done.returncode, done.stdout) == (2, "")
    assert "base64 of 32 bytes" in done.stderr


def test_keygen_warns_of_a_file_that_others_may_read(tmp_path: Path) -> None:
    for mode, warns in ((0o644, True), (0o600, False)):
        file = tmp_path / f"key-{mode}"
        file.touch()
        file.chmod(mode)
        with file.open("w") as out:
            done = subprocess.run(
                command("keygen"), stdout=out, stderr=subprocess.PIPE, text=True, check=True
            )
        assert ("umask 077" in done.stderr) is warns
        assert len(file.read_text()) == 45


def write_config(folder: Path, more: str = "") -> Path:
    key = folder / "private.key"
    key.write_text(jvpnctl("keygen").stdout)
    key.chmod(0o600)
    public = jvpnctl("pubkey", stdin=jvpnctl("keygen").stdout).stdout.strip()
    file = folder / "jvpnd.toml"
    file.write_text(
        f'role = "client"\nnode = "laptop"\n{more}\n[identity]\nprivate_key_file = "{key}"\n'
        f'[gateway]\npublic_key = "{public}"\n[[gateway.endpoint]]\n'
        'transport = "udp"\naddress = "203.0.113.7"\nport = 7700\n'
    )
    return file


def test_config_check_of_a_good_and_of_a_bad_file(tmp_path: Path) -> None:
    file = write_config(tmp_path)
    good = jvpnctl("config", "check", str(file))
    assert (good.returncode, good.stdout) == (0, f"{file}: ok: client laptop\n")
    file = write_config(tmp_path, "frobnicate = 1")
    bad = jvpnctl("config", "check", str(file))
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith(f"jvpnctl: {file}: frobnicate: ")
    assert bad.stderr.count("\n") == 1


# --- colours and words ---


@pytest.mark.usefixtures("host")
@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colours_only_on_a_terminal_and_not_with_no_color(
    path: Path, no_color: str, coloured: bool
) -> None:
    out = on_a_terminal(
        command("--socket", str(path), "status"), {**os.environ, "NO_COLOR": no_color}
    )
    assert ("\x1b[32mATTACHED" in out) is coloured
    assert ("\x1b[" in out) is coloured


def on_a_terminal(arguments: list[str], env: dict[str, str]) -> str:
    """What the command writes to a pseudo terminal."""
    ours, theirs = os.openpty()
    try:
        with subprocess.Popen(arguments, stdout=theirs, env=env) as process:
            os.close(theirs)
            output = b""
            while True:
                try:
                    chunk = os.read(ours, 65536)
                except OSError:  # EIO: the last writer has closed it
                    break
                if not chunk:
                    break
                output += chunk
            assert process.wait(20) == 0
    finally:
        os.close(ours)
    return output.decode()


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (None, "-"),
        (0, "0 ms"),
        (0.42, "0.42 ms"),
        (61.5, "61.5 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (59_999, "59.9 s"),
        (60_000, "1m 0s"),
        (3_599_999, "59m 59s"),
        (3_600_000, "1h 0m"),
        (86_399_999, "23h 59m"),
        (266_400_000, "3d 2h"),
    ],
)
def test_durations_in_words(ms: float | None, words: str) -> None:
    assert text.duration(ms) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (1_288_490_188, "1.2 GiB"),
        (5 * 1024**6, "5120.0 PiB"),
    ],
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert text.size(count) == words
