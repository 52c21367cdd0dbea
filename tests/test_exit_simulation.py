"""Simulated worlds: no healthy exit is ejected for long, and each sick one soon is."""

from __future__ import annotations

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.exit_simulation import DEAD, HEALTHY, HOSTILE, SICK, TRAP, World

#: requests of one world
REQUESTS = 400


@st.composite
def plans(draw: st.DrawFn) -> dict[str, Any]:
    count = draw(st.sampled_from([2, 3, 4, 8, 20, 100, 1000]))
    sick = draw(st.integers(0, min(count // 2, 5)))
    return {
        "count": count,
        "sick": [draw(st.sampled_from(SICK)) for _ in range(sick)],
        # whether they have worked before
        "later": draw(st.booleans()),
        "policy": draw(st.sampled_from(["round_robin", "random", "fastest", "weighted"])),
        "clients": draw(st.integers(1, 5)),
        "hostile": draw(st.sampled_from(["", "dead", "traps", "both"])),
        "dead": draw(st.sampled_from([0.0, 0.1, 0.3])),
        "sessions": draw(st.sampled_from([0.0, 0.3])),
        "burst": draw(st.sampled_from([1, 5, 15])),
        "seed": draw(st.integers(0, 2**32)),
    }


def simulate(plan: dict[str, Any]) -> World:
    chance = Random(plan["seed"])
    count, sick = plan["count"], plan["sick"]
    places = chance.sample(range(count), len(sick) + 1)
    target = places.pop()
    kinds = [chance.choice(HEALTHY) for _ in range(count)]
    many = count >= 20
    world = World(
        kinds,
        plan["seed"],
        policy="weighted" if many else plan["policy"],
        target=target,
        # of many exits those that matter get a share that tells something
        weights=dict.fromkeys([*places, target], count / 5) if many else {},
    )
    with world.clock():
        if not plan["later"]:
            for place, kind in zip(places, sick, strict=True):
                world.exits[place].become(kind)
        for turn in range(REQUESTS // plan["burst"]):
            if plan["later"] and turn == 100 // plan["burst"]:
                for place, kind in zip(places, sick, strict=True):
                    world.exits[place].become(kind)
            world.now += chance.expovariate(2.0) * plan["burst"]
            world.burst([wanted(plan, chance) for _ in range(plan["burst"])])
    return world


def wanted(plan: dict[str, Any], chance: Random) -> tuple[str, str, str | None]:
    """Host, client and session of a request."""
    if plan["hostile"] and chance.random() < 0.3:
        kind = plan["hostile"]
        kind = chance.choice(["dead", "traps"]) if kind == "both" else kind
        number = chance.randrange(10**6)
        host = f"{TRAP}{number}.example" if kind == "traps" else f"{DEAD}{number % 50}.example"
        return host, HOSTILE, "evil" if chance.random() < 0.2 else None
    client = f"192.0.2.{chance.randrange(plan['clients'])}"
    session = f"s{chance.randrange(5)}" if chance.random() < plan["sessions"] else None
    if chance.random() < plan["dead"]:
        return f"{DEAD}-site{chance.randrange(20)}.example", client, session
    if chance.random() < 0.1:
        return f"rare{chance.randrange(10**6)}.example", client, session
    return f"site{chance.randrange(12)}.example", client, session


@settings(max_examples=40)
@given(plans())
def test_no_healthy_exit_is_ejected_for_long_and_each_sick_one_soon(plan: dict[str, Any]) -> None:
    world = simulate(plan)
    assert not world.violations
