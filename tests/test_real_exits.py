"""Real proxies as exits, each beside a good one: whom a failure is blamed on, and what clients get.

Debian's proxies run here.  ``make exits`` builds the others, and runs the tests with all of them.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from tests.support import needs
from tests.support.exit_world import command
from tests.support.program import ROOT
from tests.support.real_exits import EXITS, RealExit
from tests.support.waiting import TOO_LONG

KINDS = [kind for kind in EXITS.values() if kind.debian or os.environ.get("ALL_EXITS")]

#: requests that a sick exit may get before it is ejected
ENOUGH = 20

OUT = ("ejected", "probation", "down")


def run(kind: RealExit, *, sick: bool = False) -> list[dict[str, Any]]:
    """What clients got in each of the ways to ask, and what is thought of the exits then."""
    needs.root()
    done = subprocess.run(
        command(kind.name, sick=sick),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TOO_LONG,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Any]] = json.loads(done.stdout)
    assert len(results) == 4
    return results


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_healthy_exit_is_ejected_for_destinations_that_fail(kind: RealExit) -> None:
    for result in run(kind):
        asked, served = result["good"]
        assert served == asked, result
        assert result["bad"][1] == 0, result
        for exit_ in result["exits"].values():
            assert exit_["state"] not in OUT, result


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.may_be_sick], ids=str)
def test_an_exit_that_reaches_nothing_is_ejected_and_clients_are_served(kind: RealExit) -> None:
    for result in run(kind, sick=True):
        asked, served = result["good"]
        real, good = result["exits"]["real"], result["exits"]["good"]
        # a client that was told of success can't be given another exit
        lost = real["asked"] if kind.says_yes_first else 0
        assert served >= asked - lost, result
        assert good["state"] not in OUT, result
        # one that gets few requests may be left with them
        assert real["state"] in OUT or real["asked"] < ENOUGH, result
        assert real["asked"] <= ENOUGH, result
