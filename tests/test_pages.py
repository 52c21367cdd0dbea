"""Pages of checks: what is expected of one, and which differ from what most exits get."""

from __future__ import annotations

import json
from random import Random

import h11
import hypothesis.strategies as st
import pytest
from hypothesis import given

from gsocks.errors import FetchFailed
from gsocks.exits.fetch import Page
from gsocks.rotation.pages import FEW, Pages, check, shape_of
from gsocks.settings import ExpectSettings

ADDRESS = b'{"ip": "203.0.113.7", "country": "de", "org": "x", "loc": "1,2"}'
PORTAL = b"<html><title>Please log in</title></html>"


def page(body: bytes = ADDRESS, status: int = 200) -> Page:
    return Page(h11.Response(status_code=status, headers=[]), body)


def many(count: int, body: bytes = ADDRESS) -> Pages:
    pages = Pages()
    for number in range(count):
        pages.add(number, shape_of(page(body)))
    return pages


# --- what is expected -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expect", "body", "why"),
    [
        (ExpectSettings(), b"", None),
        (ExpectSettings(status=200), b"", None),
        (ExpectSettings(status=204), b"", "answers with status 200"),
        (ExpectSettings(pattern=r'"ip": "[0-9.]+"'), ADDRESS, None),
        (ExpectSettings(pattern="^hello$"), ADDRESS, "the page does not match the pattern"),
        (ExpectSettings(json="ip"), ADDRESS, None),
        (ExpectSettings(json="geo.ip"), b'{"geo": {"ip": "203.0.113.7"}}', None),
        (ExpectSettings(json="geo.ip"), b'{"geo": "203.0.113.7"}', "no JSON with geo.ip"),
        (ExpectSettings(json="ip"), b'{"ip": null}', "no JSON with ip"),
        (ExpectSettings(json="ip"), PORTAL, "no JSON with ip"),
        (ExpectSettings(json="ip"), b"[" * 100_000, "no JSON with ip"),
        (ExpectSettings(pattern="x", json="ip"), ADDRESS, None),
        # only so much of a page is looked at
        (ExpectSettings(pattern="end"), b" " * 70_000 + b"end", "does not match"),
    ],
)
def test_a_page_is_as_expected_or_the_check_fails(
    expect: ExpectSettings, body: bytes, why: str | None
) -> None:
    if why is None:
        check(page(body), expect)
        return
    with pytest.raises(FetchFailed, match=why) as caught:
        check(page(body), expect)
    assert "203.0.113.7" not in str(caught.value)


# --- what most exits get ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usual", "other", "why"),
    [
        (ADDRESS, PORTAL, "status 200, HTML, where 6 of 6 get status 200, JSON object"),
        (ADDRESS, b'{"error": "no credit"}', "JSON without names that most have (country, ip, loc"),
        (b"203.0.113.7", PORTAL, "status 200, HTML"),
        (b"", PORTAL, "status 200, HTML, where 6 of 6 get status 200, empty"),
        (b"[1, 2]", b"203.0.113.7", "status 200, text"),
        (b"203.0.113.7", b"\xff\xd8\xff", "status 200, binary"),
        (b"<html>" + b"x" * 40_000, PORTAL, "HTML of another size than most get"),
        (PORTAL, b"<html>" + b"x" * 40_000, "HTML of another size than most get"),
    ],
)
def test_a_page_that_most_exits_do_not_get_is_told(usual: bytes, other: bytes, why: str) -> None:
    pages = many(6, usual)
    told = pages.add(9, shape_of(page(other)))
    assert told is not None
    assert why in told
    assert pages.add(7, shape_of(page(usual))) is None


def test_so_is_another_status() -> None:
    assert "status 403" in (many(6).add(9, shape_of(page(status=403))) or "")


@pytest.mark.parametrize(
    "body",
    [
        b'{"ip": "2001:db8::7", "country": "fr", "org": "y", "loc": "3", "hostname": "a.example"}',
        b'{"ip": "198.51.100.9", "country": "fr", "org": "y"}',
    ],
    ids=["one name more", "one name fewer"],
)
def test_pages_that_differ_a_little_do_not_differ(body: bytes) -> None:
    assert many(6).add(9, shape_of(page(body))) is None


def test_an_address_of_either_kind_is_the_same_text() -> None:
    assert many(6, b"203.0.113.7").add(9, shape_of(page(b"2001:db8::7"))) is None
    assert many(6, b"203.0.113.7").add(9, shape_of(page(b"42"))) is None


def test_few_pages_are_not_compared() -> None:
    for count in range(FEW):
        assert many(count).add(9, shape_of(page(PORTAL))) is None
    assert many(FEW).add(9, shape_of(page(PORTAL))) is not None


@pytest.mark.parametrize("others", [2, 3])
def test_without_a_majority_of_more_than_two_thirds_no_page_is_strange(others: int) -> None:
    pages = many(4)
    for number in range(10, 10 + others):
        pages.add(number, shape_of(page(PORTAL)))
    assert pages.add(20, shape_of(page(b"text"))) is None


def test_an_exits_own_last_page_is_not_held_against_it() -> None:
    pages = many(FEW)
    assert pages.add(0, shape_of(page(PORTAL))) is None  # only three others are left
    pages.add(9, shape_of(page()))
    assert pages.add(0, shape_of(page(PORTAL))) is not None
    pages.forget(9)
    pages.forget(9)
    assert pages.add(0, shape_of(page(PORTAL))) is None


@given(st.integers(0, 2**32), st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_the_majority_is_never_told_apart(seed: int, kinds: list[int]) -> None:
    bodies = [ADDRESS, PORTAL, b"text", b"<html>" + b"x" * 9000, json.dumps({"a": 1}).encode()]
    random, pages = Random(seed), Pages()
    latest: dict[int, int] = {}
    for kind in kinds:
        number = random.randrange(12)
        before = {other: each for other, each in latest.items() if other != number}
        told = pages.add(number, shape_of(page(bodies[kind])))
        latest[number] = kind
        if 2 * sum(each == kind for each in before.values()) > len(before):
            assert told is None
    for number in latest:
        pages.forget(number)
    assert not pages._kinds
    assert not pages._names
    assert not pages._bits
