"""The tables, in Markdown that can be read on a terminal; made from a results file alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.summary import Spread, figure_named, ratio, spread, values

#: the contenders of ours that the others are compared with
_OURS = {
    "gsocks-secretbox": "SecretBox",
    "gsocks-aegis256": "AEGIS",
    "gsocks-plain": "gsocks",
    "gsocks": "gsocks",
}

_KINDS = {
    "pair": "Pairs, encrypted between their ends",
    "plain": "Plain SOCKS5 servers",
    "gateway": "Rotating proxies",
}

#: with fewer, a median and a spread are not worth their names
_ROUNDS_THAT_COUNT = 5

_NOTHING = "-"


def report(results: dict[str, Any]) -> str:
    """Everything that a run has to say."""
    parts = [_provenance(results), "### Goals", _goals(results)]
    for figure in results["figures"]:
        parts += [f"### {figure['title']}", figure["about"], *_figure(results, figure)]
    parts += ["### Contenders", _contenders(results)]
    return "\n\n".join(parts) + "\n"


def _provenance(results: dict[str, Any]) -> str:
    about = results["about"]
    scale, machine = about["scale"], about["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    rounds = f"{scale['rounds']} round{'s' * (scale['rounds'] > 1)}"
    warning = ""
    if scale["name"] != "full" or scale["rounds"] < _ROUNDS_THAT_COUNT:
        warning = " **This run shows that the benchmark works; its numbers mean little.**"
    return (
        f"Run of {about['date']}, commit {about['commit']}: {scale['name']} form, {rounds},"
        f" {about['minutes']:g} minutes, on {machine['cores']} cores of {machine['processor']},"
        f" Linux {machine['kernel']}, {versions}. Load average before the run"
        f" {about['load_before']:.2f}.{warning}\n\n"
        f"Sizes: {scale['connections']} new connections, {scale['idle']} idle ones,"
        f" {scale['echoes']} small messages, {scale['window']:g} s of bulk,"
        f" {scale['first_bytes']} requests over the long link ({about['link']}),"
        f" {scale['others'][0]} and {scale['others'][1]} others open, {scale['stalled']} clients"
        f" that stop reading."
    )


# --- goals ----------------------------------------------------------------------------------


def _goals(results: dict[str, Any]) -> str:
    labels = {one["name"]: one["label"] for one in results["contenders"]}
    rows = []
    for goal in results["goals"]:
        figure = figure_named(results, goal["figure"])
        measure = next(m for m in figure["measures"] if m["key"] == goal["measure"])
        what = ", ".join(filter(None, (figure["title"], measure["group"], measure["unit"])))
        peer = labels.get(goal["versus"], goal["versus"])
        who = labels.get(goal["contender"], goal["contender"]) + (f" / {peer}" if peer else "")
        times = "x" if peer else ""
        bound = f">= {goal['at_least']:g}" if goal["at_least"] is not None else ""
        bound = bound or f"<= {goal['at_most']:g}"
        decimals = 2 if peer else measure["decimals"]
        measured = _shown(goal["measured"] and Spread(**goal["measured"]), decimals)
        met = {True: "yes", False: "no", None: "not measured"}[goal["met"]]
        rows.append([what, who, bound + times, measured, met])
    return _table(["figure", "of what", "goal", "measured", "met"], rows, words=2)


# --- figures --------------------------------------------------------------------------------


def _figure(results: dict[str, Any], figure: dict[str, Any]) -> Iterator[str]:
    groups = list(dict.fromkeys(measure["group"] for measure in figure["measures"]))
    for group in groups:
        measures = [measure for measure in figure["measures"] if measure["group"] == group]
        for kind, title in _KINDS.items():
            rows = [
                one
                for one in results["contenders"]
                if one["kind"] in (kind, "none") and one["name"] in figure["samples"]
            ]
            if any(one["kind"] == kind for one in rows):
                yield f"**{f'{group}. ' if group else ''}{title}**"
                yield _figure_table(figure, measures, rows)
    labels = {one["name"]: one["label"] for one in results["contenders"]}
    for name, reasons in figure["failures"].items():
        rounds = len(figure["samples"][name])
        yield f"{labels[name]} failed in {len(reasons)} of {rounds} rounds: {reasons[-1]}"


def _figure_table(
    figure: dict[str, Any], measures: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]
) -> str:
    ours = [one["name"] for one in rows if one["name"] in _OURS]
    header = [""]
    for measure in measures:
        header.append(measure["unit"])
        if measure["compared"]:
            header += [f"{_OURS[name]} / it" for name in ours]
    lines = []
    for row in rows:
        line = [row["label"]]
        for measure in measures:
            key = measure["key"]
            line.append(_shown(spread(values(figure, row["name"], key)), measure["decimals"]))
            if measure["compared"]:
                line += [_times(ratio(figure, name, row["name"], key)) for name in ours]
        lines.append(line)
    return _table(header, lines)


# --- contenders -----------------------------------------------------------------------------


def _contenders(results: dict[str, Any]) -> str:
    return _table(
        ["contender", "version"],
        [
            [one["label"], one["version"] or one["missing"]]
            for one in results["contenders"]
            if one["kind"] != "none"
        ],
        words=2,
    )


# --- cells ----------------------------------------------------------------------------------


def _shown(numbers: Spread | None, decimals: int) -> str:
    """``median (low-high)``; the range only if there was more than one round."""
    if numbers is None:
        return _NOTHING
    median, low, high = (f"{number:.{decimals}f}" for number in numbers)
    return median if low == high else f"{median} ({low}-{high})"


def _times(numbers: Spread | None) -> str:
    return _NOTHING if numbers is None else f"{numbers.median:.2f}x"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """The first columns hold words, and stand to the left; numbers to the right."""
    lines = [header, *rows]
    # a rule needs three characters
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(header))]

    def aligned(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = [
        ":" + "-" * (width - 1) if column < words else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    return "\n".join([aligned(header), f"| {' | '.join(rule)} |", *map(aligned, rows)])
