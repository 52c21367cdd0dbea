"""SECURITY.md names the tests that hold its promises."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

SECTIONS = dict(
    section.split("\n", 1) for section in (ROOT / "SECURITY.md").read_text().split("\n## ")[1:]
)

PROMISES = SECTIONS["What is promised"].split("\n- ")[1:]


def test_every_promise_names_tests() -> None:
    without = [promise for promise in PROMISES if not re.search(r"`test_[a-z0-9_]+`", promise)]
    assert PROMISES
    assert not without


def test_every_named_test_is_there() -> None:
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_[a-z0-9_]+)", path.read_text(), re.MULTILINE)
    }
    named = re.findall(r"`(test_[a-z0-9_]+)`", SECTIONS["What is promised"])
    assert set(named) <= defined, set(named) - defined
