"""What a TLS relay may tell control, whoever has taken it over."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvpnd.transport.tlsmessages import MAX_REPORT, Report, decode_report, encode_report

NUMBERS = st.integers(0, 2**32 - 1)
WHYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=250)


@given(NUMBERS, st.none() | WHYS)
def test_reports_pass(number: int, why: str | None) -> None:
    encoded = encode_report(Report(number, why))
    assert len(encoded) <= MAX_REPORT
    assert decode_report(encoded) == Report(number, None if why is None else why[:200])


@given(st.binary(max_size=300))
def test_junk_is_no_report_or_a_harmless_one(data: bytes) -> None:
    for each in (data, b"\x01" + data, b"\x02" + data):
        report = decode_report(each)
        if report is not None and report.why is not None:
            assert report.why.isascii()
            assert report.why.isprintable()
            assert 0 < len(report.why) <= 200


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"\x01", b"\x01\0\0\0", b"\x00\0\0\0\0", b"\x03\0\0\0\0", b"\x01\0\0\0\0x"),
        *(b"\x02\0\0\0\0", b"\x02\0\0\0\0\x1b[2J", b"\x02\0\0\0\0\xff", b"\x02\0\0\0\0a\nb"),
        b"\x02\0\0\0\0" + b"x" * 201,
    ],
)
def test_what_is_no_report(data: bytes) -> None:
    assert decode_report(data) is None
