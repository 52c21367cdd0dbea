"""Words of messages."""

from __future__ import annotations

from gsocks.messages import plural


def test_one_thing_is_told_in_the_singular() -> None:
    assert [plural(count, "exit") for count in (0, 1, 2)] == ["0 exits", "1 exit", "2 exits"]
