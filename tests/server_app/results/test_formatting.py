"""Durations and bytes for people."""

import pytest

from server_app.results.formatting import format_bytes, format_duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (4.06, "4.1 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (118, "1 min 58 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (999_600, "1 MB"), (1_234_000_000, "1.23 GB"), (5e13, "50 TB")],
)
def test_byte_counts(count, text):
    assert format_bytes(count) == text
