"""Durations, sizes and rates are parsed from text and formatted as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.units import (
    format_duration,
    format_rate,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("2d", 172800),
        ("1d2h3m4s5ms", 93784.005),
        ("1.5h", 5400),
        (" 10s ", 10),
        ("30", 30),
        ("0.5", 0.5),
        ("0s", 0),
        (30, 30),
        (0.25, 0.25),
    ],
)
def test_a_duration_is_parsed(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", " ", "ten minutes", "10 s", "30m1h", "1m1m", "-1s", "1:30", "off", "none", "inf", "nan"]
    + ["10S", "1e3", "s", "1.s", ".5s", "٣s", "9" * 400, "9" * 400 + "h", True, False]
    + [-1, float("inf"), float("nan")],
)
def test_an_invalid_duration_is_refused_with_examples(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"is not a duration \(expected e\.g\. 30s"):
        parse_duration(text)


def test_the_refusal_names_the_value() -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration("ten minutes")
    assert str(caught.value) == (
        "'ten minutes' is not a duration (expected e.g. 30s, 10m or 1h30m)"
    )


def test_the_refusal_of_something_long_stays_short() -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration("x" * 10_000)
    assert len(str(caught.value)) < 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.25, "250ms"),
        (0.9999, "1s"),
        (10, "10s"),
        (12.5, "12.5s"),
        (60, "1m"),
        (59.9996, "1m"),
        (5400, "1h30m"),
        (90061.5, "1d1h1m1.5s"),
    ],
)
def test_a_duration_is_formatted(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(0, 10**13))
def test_a_formatted_duration_is_parsed_back_to_the_millisecond(milliseconds: int) -> None:
    assert round(parse_duration(format_duration(milliseconds / 1000)) * 1000) == milliseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("65536", 65536),
        ("64KiB", 65536),
        ("64 KiB", 65536),
        ("10MB", 10_000_000),
        ("10kB", 10_000),
        ("10KB", 10_000),
        ("1.5GiB", 1_610_612_736),
        ("1TB", 10**12),
        ("12B", 12),
        (4096, 4096),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_a_size_is_parsed(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "64K", "10Mb", "10 mb", "-1", "1,5MB", "lots", True, "9" * 400, "1 2"]
)
def test_an_invalid_size_is_refused_with_examples(text: str | float) -> None:
    with pytest.raises(ValueError, match=r"is not a size \(expected e\.g\. 65536"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1KiB"),
        (65536, "64KiB"),
        (1_500_000, "1.4MiB"),
        (1024**2 - 1, "1MiB"),
        (3 * 1024**3, "3GiB"),
        (5 * 1024**5, "5120TiB"),
    ],
)
def test_a_size_is_formatted(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 10**18))
def test_a_formatted_size_is_parsed_back_within_its_one_decimal(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.051)


def test_a_rate_is_a_size_per_second() -> None:
    assert parse_rate("10MB/s") == 10_000_000
    assert parse_rate("2048") == 2048
    assert parse_rate(512) == 512
    assert format_rate(65536) == "64KiB/s"
    assert parse_rate(format_rate(65536)) == 65536


@pytest.mark.parametrize("text", ["", "/s", "10MB/m", "10Mbit/s", "fast"])
def test_what_is_no_rate_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a rate \(expected e\.g\. 64KiB/s"):
        parse_rate(text)
