"""The bars: each measure of each contender, with its spread and its ratio to gsocks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from bench.summary import Spread, ratio, spread, values

#: the contender of ours that stands for its kind in the ratios
_REFERENCE = {"pair": "gsocks-secretbox", "plain": "gsocks-plain"}
_OURS, _OTHERS, _NO_PROXY = "#2a9d8f", "#8d99ae", "#d9d9d9"
_COLUMNS = 2


def can_plot() -> bool:
    """Whether matplotlib is there; it is in the extra "bench"."""
    return importlib.util.find_spec("matplotlib") is not None


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw all figures of a run into one picture."""
    from matplotlib.figure import Figure

    panels = [
        (figure, measure)
        for figure in results["figures"]
        for measure in figure["measures"]
    ]  # fmt: skip
    lines = -(-len(panels) // _COLUMNS)
    canvas = Figure(figsize=(8 * _COLUMNS, 3.6 * lines), layout="constrained")
    grid = canvas.subplots(lines, _COLUMNS, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _bars(axes, results, *panel)
    for unused in grid.flat[len(panels) :]:
        unused.set_axis_off()
    about = results["about"]
    canvas.suptitle(
        f"{about['date']}, {about['scale']['name']} form, rounds: {about['scale']['rounds']};"
        " bar: median, line: range, x: times gsocks of the same kind"
    )
    canvas.savefig(path, dpi=80)


def _bars(axes: Any, results: dict[str, Any], figure: dict[str, Any], measure: Any) -> None:
    key = measure["key"]
    shown = [
        (one, numbers)
        for one in reversed(results["contenders"])
        if (numbers := spread(values(figure, one["name"], key))) is not None
        and (numbers.median or one["kind"] != "none")
    ]
    for row, (one, numbers) in enumerate(shown):
        error = [[numbers.median - numbers.low], [numbers.high - numbers.median]]
        axes.barh(row, numbers.median, xerr=error, color=_color(one), ecolor="#333333", capsize=2)
        axes.annotate(
            _said(figure, one, measure, numbers),
            (numbers.high, row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(shown)), [one["label"] for one, _ in shown], fontsize=7)
    axes.margins(x=0.2)
    better = "more" if measure["more_is_better"] else "less"
    title = ", ".join(filter(None, (figure["title"], measure["group"])))
    axes.set_title(f"{title}: {measure['unit']} ({better} is better)", fontsize=9)


def _color(contender: dict[str, Any]) -> str:
    if contender["kind"] == "none":
        return _NO_PROXY
    return _OURS if contender["name"].startswith("gsocks") else _OTHERS


def _said(figure: dict[str, Any], one: dict[str, Any], measure: Any, numbers: Spread) -> str:
    said = f"{numbers.median:.{measure['decimals']}f}"
    reference = _REFERENCE.get(one["kind"])
    if measure["compared"] and reference and reference != one["name"]:
        times = ratio(figure, one["name"], reference, measure["key"])
        if times is not None:
            said += f"  {times.median:.2f}x"
    return said
