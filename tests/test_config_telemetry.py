"""The tables [audit] and [export.*]: what they mean, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from jvpnd.config import ConfigError, load
from jvpnd.configtelemetry import Audit, Collector, TelemetrySettings
from jvpnd.observe.exporters import prometheus

from .test_config import CLIENT, GATEWAY, SECRET, write_key


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_key(tmp_path / "private.key", SECRET)
    return tmp_path


def loaded(folder: Path, text: str, role: str = CLIENT) -> TelemetrySettings:
    file = folder / "jvpnd.toml"
    file.write_text(role + text)
    return load(file).telemetry


@pytest.mark.parametrize("role", [CLIENT, GATEWAY])
def test_telemetry_is_off_unless_it_is_configured(folder: Path, role: str) -> None:
    assert loaded(folder, "", role) == TelemetrySettings(None, None, None, None)
    assert loaded(folder, "[export]\n", role) == TelemetrySettings()


def test_each_table_switches_one_thing_on_with_defaults(folder: Path) -> None:
    text = '[audit]\nfile = "audit.jsonl"\n[export.journald]\n'
    text += '[export.syslog]\naddress = "192.0.2.9"\n[export.prometheus]\nlisten = "[::1]:9477"\n'
    assert loaded(folder, text) == TelemetrySettings(
        Audit(folder / "audit.jsonl", 16 * 1024 * 1024, 8),
        "/run/systemd/journal/socket",
        Collector("udp", "192.0.2.9", 514),
        "[::1]:9477",
    )


def test_every_key_can_be_set(folder: Path) -> None:
    text = '[audit]\nfile = "/var/log/jvpn/a"\nmax_bytes = 65536\nkeep = 1\n'
    text += '[export.journald]\nsocket = "/tmp/j"\n'
    text += '[export.syslog]\ntransport = "tcp"\naddress = "logs.example.org"\nport = 601\n'
    text += '[export.prometheus]\nlisten = "/run/jvpn/metrics.sock"\n'
    assert loaded(folder, text, GATEWAY) == TelemetrySettings(
        Audit(Path("/var/log/jvpn/a"), 65536, 1),
        "/tmp/j",
        Collector("tcp", "logs.example.org", 601),
        "/run/jvpn/metrics.sock",
    )


PROMETHEUS = "[export.prometheus]\nlisten = "


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("[audit]\n", "audit.file", "is missing"),
        ('[audit]\nfile = ""\n', "audit.file", "is a directory"),
        ('[audit]\nfile = "/"\n', "audit.file", "is a directory"),
        ('[audit]\nfile = "a"\nkeep = 0\n', "audit.keep", "out of range"),
        ('[audit]\nfile = "a"\nmax_bytes = 1\n', "audit.max_bytes", "out of range"),
        ('[audit]\nfile = "a"\nmode = 1\n', "audit.mode", "unknown key"),
        ("[export.webhook]\n", "export.webhook", "unknown key"),
        ('[export.journald]\nsocket = "x"\n', "export.journald.socket", "no socket's name"),
        ('[export.journald]\nsock = "x"\n', "export.journald.sock", "unknown key"),
        ("[export.syslog]\n", "export.syslog.address", "is missing"),
        ('[export.syslog]\naddress = "a b"\n', "export.syslog.address", "not an address"),
        ('[export.syslog]\naddress = "::"\n', "export.syslog.address", "not one host's"),
        ('[export.syslog]\naddress = "::1"\nport = 0\n', "export.syslog.port", "out of range"),
        (
            '[export.syslog]\naddress = "::1"\ntransport = "tls"\n',
            *("export.syslog.transport", "not supported"),
        ),
        (f'{PROMETHEUS}"0.0.0.0:9"\n', "export.prometheus.listen", "not a loopback address"),
        (f'{PROMETHEUS}"192.0.2.1:9"\n', "export.prometheus.listen", "not a loopback address"),
        (f'{PROMETHEUS}"[::]:9"\n', "export.prometheus.listen", "not a loopback address"),
        (f'{PROMETHEUS}"localhost:9"\n', "export.prometheus.listen", "not an address"),
        (f'{PROMETHEUS}"::1:9"\n', "export.prometheus.listen", "not an address"),
        (f'{PROMETHEUS}"[127.0.0.1]:9"\n', "export.prometheus.listen", "not an address"),
        (f'{PROMETHEUS}"127.0.0.1"\n', "export.prometheus.listen", "not an address"),
        (f'{PROMETHEUS}"127.0.0.1:0"\n', "export.prometheus.listen", "out of range"),
        (f'{PROMETHEUS}"run/x.sock"\n', "export.prometheus.listen", "no socket's name"),
        (f'{PROMETHEUS}"/{"x" * 107}"\n', "export.prometheus.listen", "no socket's name"),
        ("[export.prometheus]\n", "export.prometheus.listen", "is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_key(
    folder: Path, text: str, key: str, problem: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(folder, text)
    assert caught.value.key == key
    assert problem in caught.value.problem


def test_without_the_library_metrics_are_refused_with_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'jvpn\[metrics\]'"):
        loaded(folder, f'{PROMETHEUS}"127.0.0.1:9477"\n')
    assert loaded(folder, '[audit]\nfile = "a"\n').audit is not None
