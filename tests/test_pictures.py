"""The pictures of the README are those that the code makes now."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from release.pictures import WIDTH, contents
from tests.support.program import ROOT

CONTENTS = contents()


@pytest.mark.parametrize("name", CONTENTS)
def test_a_picture_is_as_the_code_makes_it(name: str) -> None:
    assert (ROOT / name).read_text() == CONTENTS[name], "python -m release.pictures writes it"


def test_the_pictures_are_svg_and_the_screen_fits() -> None:
    for name in ("docs/picture.svg", "docs/live.svg"):
        assert ElementTree.fromstring(CONTENTS[name]).tag.endswith("svg")
    assert all(len(line) <= WIDTH for line in CONTENTS["docs/live.txt"].splitlines())
