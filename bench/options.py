"""What the benchmarks' command lines have in common: how much is measured, of what and of whom."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from bench.contenders import Contender
from bench.figures import Figure
from bench.scale import FULL, QUICK, Scale


def parser_of(
    module: str, about: str, figures: Sequence[Figure], contenders: Sequence[Contender]
) -> argparse.ArgumentParser:
    """The options of ``python -m MODULE``."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=about)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: shows that it works"
    )
    parser.add_argument("--rounds", metavar="N", type=int, help="rounds, instead of the form's own")
    for option, known in (("figures", figures), ("contenders", contenders)):
        names = [one.name for one in known]
        parser.add_argument(
            f"--{option}", nargs="+", choices=names, default=names, metavar="NAME",
            help=f"only these (known: {', '.join(names)})",
        )  # fmt: skip
    return parser


def wanted(
    options: argparse.Namespace, figures: Sequence[Figure], contenders: Sequence[Contender]
) -> tuple[Scale, list[Figure], list[Contender]]:
    """What the options say is to be measured."""
    scale = QUICK if options.quick else FULL
    if options.rounds:
        scale = scale._replace(rounds=options.rounds)
    return (
        scale,
        [figure for figure in figures if figure.name in options.figures],
        [contender for contender in contenders if contender.name in options.contenders],
    )
