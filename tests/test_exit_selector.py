"""Wishes: what may be said in them, and which one counts where there are two."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gsocks.wish import ANY, Wish, as_country, as_exit, as_session, as_tag

WHOLE = Wish("x", 60.0, "de", ("fast", "mobile"), "berlin-1")


def test_a_wish_counts_key_by_key_over_another_one() -> None:
    assert Wish().over(WHOLE) == WHOLE.over(Wish()) == WHOLE
    assert Wish("y", country="fr").over(WHOLE) == Wish("y", 60.0, "fr", WHOLE.tags, "berlin-1")
    assert Wish(lifetime=5.0, tags=("slow",), exit="a").over(WHOLE) == Wish(
        "x", 5.0, "de", ("slow",), "a"
    )
    assert ANY.over(ANY) == ANY


def test_a_wish_is_told_in_the_words_of_a_config() -> None:
    told = "session x, lifetime 1m, country de, tags fast mobile, exit berlin-1"
    assert str(WHOLE) == told
    assert str(Wish(country="de")) == "country de"
    assert str(ANY) == ""


def test_words_are_taken_as_they_are_meant() -> None:
    assert as_session("-Ab_1.2") == "-Ab_1.2"
    assert as_country("NO") == "no"
    assert as_tag("Data-Center.1") == "data-center.1"
    assert as_exit("Berlin-1") == "berlin-1"


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (as_session, ""),
        (as_session, "a b"),
        (as_session, "x" * 65),
        (as_session, "x\n"),
        (as_session, 7),
        (as_country, "ger"),
        (as_country, "d\n"),
        (as_country, False),
        (as_tag, "-a"),
        (as_tag, "a b"),
        (as_tag, "x" * 65),
        (as_exit, "ä"),
        (as_exit, None),
    ],
)
def test_what_is_no_word_is_refused(read: Callable[[object], str], text: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        read(text)
