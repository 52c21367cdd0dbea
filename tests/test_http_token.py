"""A token has the characters of RFC 9110, and no others."""

from __future__ import annotations

import re

from gsocks.http.token import TCHARS, TOKEN

# RFC 9110 section 5.6.2
VISIBLE = {chr(code) for code in range(0x21, 0x7F)}
DELIMITERS = set('"(),/:;<=>?@[\\]{}')


def test_tchars_are_the_visible_characters_without_the_delimiters() -> None:
    assert set(TCHARS) == VISIBLE - DELIMITERS
    assert len(TCHARS) == len(set(TCHARS)) == 77


def test_a_token_is_one_or_more_of_them() -> None:
    assert re.fullmatch(TOKEN, TCHARS)
    assert not re.fullmatch(TOKEN, "")
    for code in range(0x100):
        assert bool(re.fullmatch(TOKEN, chr(code))) == (chr(code) in TCHARS)
