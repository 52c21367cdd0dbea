"""JSON that is read in steps, against Python's own reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gsocks.messages import Mistake
from gsocks.rotation.list_json import MAX_ENTRY, Items, TooMany, loads

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_VALUES, st.sampled_from([None, 1, "\t"]), st.sampled_from(["", " ", "\r\n"]))
def test_it_reads_what_json_reads(value: object, indent: int | str | None, around: str) -> None:
    text = around + json.dumps(value, indent=indent) + around
    assert loads(text) == value


@given(_VALUES, st.integers(0, 200), st.sampled_from(["", ",", "]", "}", '"', ":", "x", "[", "1"]))
def test_what_json_refuses_is_refused(value: object, at: int, put: str) -> None:
    text = json.dumps(value)
    text = text[:at] + put + text[at + 1 :]
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            loads(text)
    else:
        assert loads(text) == expected


@pytest.mark.parametrize("text", ["", " ", "[", "{", "[1,]", '{"a":1,}', "{1:2}", "[] []", '{"a"}'])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(text)


def test_of_two_values_for_a_key_the_last_one_counts() -> None:
    text = '{"a": [1], "a": [2, {"b": 1, "b": 2}]}'
    assert loads(text) == json.loads(text) == {"a": [2, {"b": 2}]}


def test_what_is_nested_without_end_is_refused_as_json_refuses_it() -> None:
    for text in ("[" * 200_000, '{"a":' * 200_000):
        with pytest.raises((ValueError, RecursionError)):
            loads(text)


@pytest.mark.parametrize(
    "long",
    [
        [{}] * 30_000,
        "x" * 200_000,
        '"]{\\' * 20_000,
        {"a": "x[" * 70_000 + "]", "b": [[{}], "\\"]},
        ["a]", 'b"['] * 10_000,
    ],
)
def test_an_entry_that_is_too_long_is_none_and_those_around_it_are_read(long: object) -> None:
    items = loads(json.dumps([1, long, "2"]))
    assert isinstance(items, Items)
    first, between, last = items
    assert (first, last) == (1, "2")
    assert isinstance(between, Mistake)


def test_an_entry_may_have_so_many_characters() -> None:
    longest = "x" * (MAX_ENTRY - 2)
    assert loads(json.dumps([longest])) == [longest]
    assert loads(json.dumps([longest + "x"])) != [longest + "x"]


@pytest.mark.parametrize("part", ['["', "[[", '{"a":[', '["\\"', "[1"])
def test_what_has_no_end_is_no_json_however_long_it_is(part: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        loads(part + "x" * 200_000)


def test_a_list_with_too_many_members_is_not_read_to_its_end() -> None:
    assert loads("[1, 2]", 2) == [1, 2]
    assert loads('{"a": 1, "b": 2}', 2) == {"a": 1, "b": 2}
    for text in (
        "[1, 2, 3, no JSON",
        '{"a": 1, "b": 2, "c": 3, no JSON',
        '{"a": [1, 2, 3, no JSON',
    ):
        with pytest.raises(TooMany):
            loads(text, 2)


def test_a_list_may_be_gone_through_again() -> None:
    items = loads('[1, {"a": []}]')
    assert isinstance(items, Items)
    assert list(items) == list(items) == [1, {"a": []}]
