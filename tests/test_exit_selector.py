"""Exit selectors: valid attributes, and the merge of two selectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gsocks.request import ANY, ExitSelector, as_country, as_exit, as_session, as_tag

WHOLE = ExitSelector("x", 60.0, "de", ("fast", "mobile"), "berlin-1")


def test_a_merge_takes_each_attribute_from_the_first_selector_that_sets_it() -> None:
    assert ExitSelector().merge(WHOLE) == WHOLE.merge(ExitSelector()) == WHOLE
    assert ExitSelector("y", country="fr").merge(WHOLE) == ExitSelector(
        "y", 60.0, "fr", WHOLE.tags, "berlin-1"
    )
    assert ExitSelector(lifetime=5.0, tags=("slow",), exit="a").merge(WHOLE) == ExitSelector(
        "x", 5.0, "de", ("slow",), "a"
    )
    assert ANY.merge(ANY) == ANY


def test_a_selector_is_written_in_the_words_of_a_config() -> None:
    text = "session x, lifetime 1m, country de, tags fast mobile, exit berlin-1"
    assert str(WHOLE) == text
    assert str(ExitSelector(country="de")) == "country de"
    assert str(ANY) == ""


def test_attributes_are_read_in_their_canonical_case() -> None:
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
def test_an_invalid_attribute_is_refused(read: Callable[[object], str], text: object) -> None:
    with pytest.raises(ValueError, match="is not"):
        read(text)
