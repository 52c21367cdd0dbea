"""The straight way of the commonest lines: it reads what the parser of all lines reads."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gsocks.exits.spec import ExitSpec
from gsocks.rotation import lists
from gsocks.rotation.list_lines import Described, describe_line
from gsocks.rotation.list_straight import StraightLines
from gsocks.rotation.lists import ExitList, ListOptions, parse_list, read_list

HERE = ListOptions(base=Path("/etc/gsocks"))

#: the schemes of those lines, others, and none
SCHEMES = ["", "http://", "https://", "socks5://", "socks5h://", "socks4://", "socks4a://"]
SCHEMES += ["HTTP://", "socks://", "ss://", "vmess://", "socks5s://"]

octets = st.integers(0, 260).map(str) | st.sampled_from(["01", "0x7f", "127", "10"])
hosts = st.lists(octets, min_size=3, max_size=5).map(".".join)
hosts |= st.sampled_from(["gw.example.com", "[2001:db8::7]", "10.0.0.7", "93.184.216.34"])
ports = st.integers(0, 70_000).map(str) | st.sampled_from(["080", "8080"])
words = st.text("aZ09._-", min_size=1, max_size=8)
words |= st.sampled_from(
    ["US", "elite", "http", "socks5", "10.0.0.8", "80", "direct", "p%41w", "{session}", "w" * 256]
)
words |= st.text("a1:@#%{}= ?|,", max_size=4)
options = st.lists(
    st.sampled_from(
        [" country=de", " country=xx1", " tags=a", " tags=b,c", " weight=2", " name=n", " tags="]
    ),
    max_size=3,
).map("".join)


@st.composite
def lines(draw: st.DrawFn) -> str:
    place = f"{draw(hosts)}:{draw(ports)}"
    login = draw(st.none() | st.tuples(words, words).map(":".join))
    forms = [place] if login is None else [f"{login}@{place}", f"{place}:{login}"]
    return draw(st.sampled_from(SCHEMES)) + draw(st.sampled_from(forms)) + draw(options)


def told(found: ExitList) -> tuple[list[object], object, int]:
    """All that a list has, with the terms that two equal exits may differ in."""
    terms = [
        (spec, spec.url, spec.name, spec.weight, spec.tags, spec.country, spec.public)
        for spec in found.exits
    ]
    return [*terms], found.skipped, found.duplicates


def without_straight_way(raw: bytes, read_with: ListOptions) -> ExitList:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StraightLines, "read", lambda _, line: None)
        return read_list(raw, read_with)


PUBLIC = ListOptions("socks5", {"weight": 2.0, "tags": ("all",), "country": "fr"}, public=True)


@pytest.mark.parametrize("read_with", [HERE, PUBLIC], ids=["of a file", "of a URL"])
@settings(max_examples=300)
@given(found=st.lists(lines(), min_size=1, max_size=12))
def test_the_straight_way_reads_what_the_parser_of_all_lines_reads(
    read_with: ListOptions, found: list[str]
) -> None:
    # the first of a shape goes by the other way
    raw = "\n".join(["9.9.9.9:80", *found, *found[::-1], "9.9.9.9:80"]).encode()
    assert told(read_list(raw, read_with)) == told(without_straight_way(raw, read_with))


@pytest.mark.parametrize(
    "line",
    [
        "10.0.0.{}:8080",
        "10.0.0.{}:8080:joe:pw{}",
        "joe{}:pw@10.0.0.{}:8080",
        "http://10.0.0.{}:8080",
        "socks5://10.0.0.{}:8080",
        "https://joe:pw{}@10.0.0.{}:443",
        "10.0.0.{}:8080 country=de tags=a,b",
    ],
)
def test_the_other_parser_reads_one_line_of_each_common_shape(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(text: str, scheme: str) -> Described | str:
        asked.append(text)
        return describe_line(text, scheme)

    monkeypatch.setattr(lists, "describe_line", noted)
    raw = "\n".join(line.format(number, number) for number in range(100)).encode()
    assert len(parse_list(raw, HERE).exits) == 100
    assert len(asked) == 1


def test_exits_of_one_shape_share_what_they_have_in_common() -> None:
    first, second = (ExitSpec("http", host, 80, country="de") for host in ("10.0.0.7", "10.0.0.8"))
    assert first._common is second._common
