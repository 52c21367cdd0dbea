"""What the mutation run goes by: the modules of the core, their tests, and equivalent mutants."""

from __future__ import annotations

import pytest

from tests.support.core_tests import TESTS, core
from tests.support.equivalent_mutants import EQUIVALENT, Change, places, scope_at
from tests.support.program import ROOT


def test_each_module_of_the_core_has_tests_that_are_to_find_its_faults() -> None:
    assert set(TESTS) == core()
    for module, names in TESTS.items():
        for name in names.split():
            assert (ROOT / "tests" / f"test_{name}.py").is_file(), (module, name)


def test_a_module_is_tried_with_the_test_file_of_its_name() -> None:
    for module, names in TESTS.items():
        name = module.rpartition("/")[2]
        if (ROOT / "tests" / f"test_{name}.py").exists():
            assert name in names.split(), module


@pytest.mark.parametrize(("change", "why"), EQUIVALENT)
def test_what_an_equivalent_mutant_changes_stands_in_the_code_once(
    change: Change, why: str
) -> None:
    assert places(change) == 1, change
    assert why
    assert change.key.before != change.key.after


def test_no_mutant_is_listed_twice() -> None:
    assert len({change.key for change, _ in EQUIVALENT}) == len(EQUIVALENT)


def test_a_line_that_is_gone_or_stands_there_twice_is_noticed() -> None:
    change, _ = EQUIVALENT[0]
    assert places(change._replace(before=change.before + " + 1")) == 0
    assert places(change._replace(within="elsewhere")) == 0
    twice = Change("rotation/policy", "_ByTurn.choose", "heapq.heappop(heap)", "pass")
    assert places(twice) == 2


def test_a_line_belongs_to_the_innermost_function_or_class() -> None:
    text = "a = 1\nclass A:\n    b = 2\n    def f(self) -> None:\n        c = 3\nd = 4\n"
    assert [scope_at(text, line) for line in range(1, 7)] == ["", "A", "A", "A.f", "A.f", ""]
