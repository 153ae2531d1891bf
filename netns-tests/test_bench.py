"""The benchmark: its search and its arithmetic on their own, and one quick run end to end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import benchmark
import pytest
from bench import docs, processes, table
from bench.chart import chart
from bench.metrics import METRICS, Summary, ratio, summary
from bench.peers import Peer
from bench.peers.plain import Plain
from bench.ping import percentile
from bench.results import Results, numbers
from bench.search import LOSS_MAX, PRECISION, Trial, search
from hypothesis import given
from hypothesis import strategies as st
from lab.stage import until

BENCHMARK = Path(benchmark.__file__)
METRIC = {metric.key: metric for metric in METRICS}
OF_PROCESSES = {key for key in METRIC if key.startswith(("client_", "gateway_"))}


def product(name: str, family: str, version: str) -> Peer:
    """A contender that only has a name."""
    peer = Plain()
    peer.name, peer.family, peer.label = name, family, f"{name} & <{version}>"
    peer.version = lambda: version  # type: ignore[method-assign]
    return peer


# --- the search ---


@given(limit=st.floats(1.0, 1e7), start=st.floats(10.0, 1e6))
def test_the_search_finds_the_limit(limit: float, start: float) -> None:
    found = search(lambda rate: Trial(rate, rate, min(rate, limit)), start, 60)
    assert limit / PRECISION <= found.rate <= limit
    assert not found.sender_limited


@given(st.lists(st.tuples(st.floats(0, 1.2), st.floats(0, 1)), max_size=40), st.integers(1, 20))
def test_the_search_ends_within_its_trials_whatever_happens(
    luck: list[tuple[float, float]], most: int
) -> None:
    fates = iter(luck)

    def trial(rate: float) -> Trial:
        sent, received = next(fates, (1.0, 1.0))
        return Trial(rate, rate * sent, rate * sent * received)

    found = search(trial, 1000, most)
    assert 0 < len(found.trials) <= most
    passed = [t.received for t in found.trials if t.passed]
    assert found.rate == max(passed, default=0)


def test_single_disturbed_trials_do_not_decide() -> None:
    luck = random.Random(1)
    calls = 0

    def trial(rate: float) -> Trial:
        nonlocal calls
        calls += 1
        disturbed = calls % 3 == 0
        return Trial(rate, rate, min(rate * luck.uniform(0.995, 1), 50_000) * (1 - disturbed / 2))

    found = search(trial, 1000, 40)
    assert 48_000 < found.rate <= 50_500


def test_a_sender_that_cannot_go_higher_is_told() -> None:
    found = search(lambda rate: Trial(rate, min(rate, 5000), min(rate, 5000)), 1000, 20)
    assert found.sender_limited
    assert found.rate == 5000


def test_a_sender_that_was_slow_once_is_no_limit() -> None:
    slow = iter([True])

    def trial(rate: float) -> Trial:
        sent = rate / 2 if next(slow, False) else rate
        return Trial(rate, sent, min(sent, 5000))

    found = search(trial, 1000, 40)
    assert not found.sender_limited
    assert found.rate > 5000 / PRECISION


def test_what_loses_too_much_at_any_rate_has_no_rate() -> None:
    found = search(lambda rate: Trial(rate, rate, rate * (1 - 2 * LOSS_MAX)), 1000, 12)
    assert found.rate == 0
    assert len(found.trials) == 12


def test_nothing_sent_is_no_pass() -> None:
    assert not Trial(100, 0, 0).passed


# --- the arithmetic ---


def test_several_rounds_become_median_and_spread() -> None:
    assert summary([3.0, 1.0, 2.0]) == Summary(2.0, 1.0, 3.0)
    assert summary([1.0, 2.0]) == Summary(1.5, 1.0, 2.0)
    assert summary([]) is None


def test_a_ratio_above_one_is_good_whatever_the_metric() -> None:
    ours = {"tcp1_up": [4.0, 6.0, 5.0], "load_median": [2.0]}
    theirs = {"tcp1_up": [2.5], "load_median": [3.0, 5.0]}
    assert ratio(METRIC["tcp1_up"], ours, theirs) == 2.0
    assert ratio(METRIC["load_median"], ours, theirs) == 2.0
    assert ratio(METRIC["udp64"], ours, theirs) is None
    assert ratio(METRIC["tcp1_up"], ours, {"tcp1_up": [0.0]}) is None


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert percentile(values, 0.95) == 95
    assert percentile(values, 1.0) == 100
    assert percentile([7.0], 0.95) == 7


def test_compared_with_is_the_newest_of_each_product() -> None:
    assert numbers("0.0.20250522") > numbers("0.0.20220316")
    peers = [
        product("plain", "plain", "6.1"),
        product("ours", "jvpn", "0.1"),
        product("new", "wireguard-go", "0.0.20250522"),
        product("old", "wireguard-go", "0.0.20220316"),
        product("absent", "OpenVPN", "2.6"),
    ]
    results = Results(peers, "made up")
    for peer in peers[:-1]:
        results.add(peer.name, {"tcp1_up": 1.0}, {})
    assert [peer.name for peer in results.rivals()] == ["new"]


# --- what it writes ---


@pytest.fixture
def results() -> Results:
    peers = [product("a-b", "jvpn", "0.1"), product("wg", "wireguard-go", "1")]
    results = Results(peers, "make bench", skipped={"other": "no such program"})
    for number in range(3):
        results.add("a-b", {"tcp1_up": 4.0 + number, "udp64": 300.0}, {})
        results.add("wg", {"tcp1_up": 2.5}, {"udp64": {"sender_limited": True}})
    return results


def test_the_table_has_medians_spread_and_ratios(results: Results) -> None:
    row = next(line for line in table.medians(results).splitlines() if "TCP, 1 stream, cl" in line)
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["Gbit/s", "5.00 (4.00-6.00)", "2.50"]
    row = next(line for line in table.ratios(results).splitlines() if "TCP, 1 stream, cl" in line)
    assert row.split("|")[2].strip() == "2.00"
    widths = {len(line) for line in table.medians(results).splitlines()}
    assert len(widths) == 1


def test_the_picture_shows_each_vpn_and_is_well_formed(results: Results) -> None:
    text = chart(results)
    words = [node.text for node in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert "a-b & <0.1>" in words
    assert words.count("5.00") == 1
    bars = ET.fromstring(text).iter("{http://www.w3.org/2000/svg}rect")
    widths = {bar.get("class"): float(bar.get("width", 0)) for bar in bars}
    assert 0 < widths["theirs"] < widths["ours"]


def test_only_the_marked_section_of_the_page_is_written(results: Results, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{docs.BEGIN}\nold\n{docs.END}\nafter\n")
    for _ in range(2):
        docs.rewrite(page, docs.section(results))
        text = page.read_text()
        assert text.startswith(f"before\n{docs.BEGIN}\n![")
        assert text.endswith(f"other (no such program).\n{docs.END}\nafter\n")
        assert "old" not in text
    page.write_text("no markers")
    with pytest.raises(ValueError, match="wants"):
        docs.rewrite(page, "x")


def test_the_page_of_this_project_has_the_markers() -> None:
    text = benchmark.PAGE.read_text()
    assert text.count(docs.BEGIN) == text.count(docs.END) == 1


# --- processes and choices ---


def test_cpu_time_and_memory_are_of_the_whole_tree() -> None:
    child = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {child!r}])\n"
        "held = b'x' * (64 << 20)\n"
        "grandchild = subprocess.Popen(['sleep', '60'])\n"
        "print(grandchild.pid, flush=True)\n"
        "input()\n"
        "grandchild.kill()\n"
    )
    command, pipe = [sys.executable, "-c", parent], subprocess.PIPE
    with subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        grandchild = int(process.stdout.readline())
        assert processes.cpu_s([process.pid]) >= 0.25
        assert processes.peak_memory_bytes([process.pid]) > 64 << 20
        assert processes.tree([process.pid]) == [process.pid, grandchild]
        assert grandchild in processes.tree([os.getpid()])
        process.communicate("\n")
    assert processes.cpu_s([process.pid]) == 0


def test_contenders_are_chosen_by_name_and_unknown_ones_refused() -> None:
    peers = [product(name, "x", "1") for name in ("plain", "jvpn-udp-aes", "jvpn-udp-chacha")]
    assert [peer.name for peer in benchmark.choose(peers, "jvpn*,plain")] == [p.name for p in peers]
    with pytest.raises(ValueError, match=r"--only openvpm: .*jvpn-udp-aes"):
        benchmark.choose(peers, "plain,openvpm")


# --- end to end ---


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(BENCHMARK), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def left_by(pid: int) -> list[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    names = [line.split()[0] for line in listed.stdout.splitlines() if line]
    return [name for name in names if name.startswith(f"jv{pid}-")]


def running_in(namespaces: list[str]) -> dict[int, str]:
    """Processes by pid, with their names."""
    found = {}
    for name in namespaces:
        command = ["ip", "netns", "pids", name]
        listed = subprocess.run(command, capture_output=True, text=True, check=False)
        for pid in listed.stdout.split():
            with contextlib.suppress(OSError):
                found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_a_quick_run_measures_everything_and_leaves_nothing(tmp_path: Path) -> None:
    values, picture = tmp_path / "values.json", tmp_path / "picture.svg"
    with start(
        *("--quick", "--only", "plain,jvpn-udp-chacha"),
        *("--json", str(values), "--chart", str(picture)),
    ) as run:
        out, _ = run.communicate(timeout=180)
    assert run.returncode == 0, out
    assert not left_by(run.pid)
    written = json.loads(values.read_text())
    contenders = written["contenders"]
    assert list(contenders) == ["plain", "jvpn-udp-chacha"]
    for name, contender in contenders.items():
        (only,) = contender["rounds"]
        missing = set(METRIC) - set(only["values"])
        assert missing == (OF_PROCESSES if name == "plain" else set())
        assert all(value > 0 for value in only["values"].values()), only["values"]
    assert "Jumping VPN, UDP, ChaCha20" in out
    assert f"| {METRIC['tcp4_down'].label} " in out
    assert "Jumping VPN" in ET.fromstring(picture.read_text()).findtext(
        "{http://www.w3.org/2000/svg}text[@class='title']", ""
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.skipif(shutil.which("iperf3") is None, reason="needs iperf3")
def test_an_interrupted_run_leaves_nothing() -> None:
    with start("--quick", "--only", "jvpn-udp-chacha") as run:
        until(lambda: "iperf3" in running_in(left_by(run.pid)).values(), "iperf3 runs", 60)
        inside = running_in(left_by(run.pid))
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=60)
    assert run.returncode == 130, out
    assert not left_by(run.pid)
    assert len(inside) >= 6  # two daemons with two workers each
    until(
        lambda: not [pid for pid in inside if Path(f"/proc/{pid}").exists()], f"{inside} are gone"
    )
