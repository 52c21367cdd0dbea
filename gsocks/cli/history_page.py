"""The report as one page of HTML with its charts in it: no script, and nothing from elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape

from gsocks.cli.history_report import Part, Report
from gsocks.cli.past import milliseconds, moment, size

#: of a chart, in CSS pixels
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 180, 60, 20

#: bars of a chart of parts
_MOST_BARS = 20

_STYLE = """
:root { color-scheme: light dark; --line: #888; --ok: #2a7de1; --bad: #d1242f; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: right; padding: .3rem .6rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; }
text { fill: currentColor; font-size: 11px; }
.ok { fill: var(--ok); } .bad { fill: var(--bad); } .axis { stroke: var(--line); }
"""


def page(report: Report) -> str:
    """The whole page."""
    begin, end = (moment(each)[:16].replace("T", " ") for each in (report.since, report.until))
    span = f"{begin} to {end} UTC"
    requests = sum(each.requests for each in report.points)
    failed = sum(each.failed for each in report.points)
    carried = sum(each.up + each.down for each in report.points)
    lines = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        f"<title>gsocks report</title><style>{_STYLE}</style></head><body>",
        f"<h1>gsocks report</h1><p>{escape(span)}: {requests} requests, {failed} of them failed,"
        f" {escape(size(carried))} carried.</p>",
        f"<h2>By {escape(report.by)}</h2>",
        *_table(report),
        *_over_time("Requests", report, [each.requests for each in report.points], _failed(report)),
        *_over_time("Bytes", report, [each.up + each.down for each in report.points]),
        *_bars("Cost", [(each.name, each.cost or 0.0) for each in report.parts], "{:.2f}"),
        *_bars("Bytes", [(each.name, float(each.up + each.down)) for each in report.parts], ""),
        *_bars(
            "Share of failures", [(each.name, each.failed_share) for each in report.parts], "{:.1%}"
        ),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _failed(report: Report) -> list[int]:
    return [each.failed for each in report.points]


def _table(report: Report) -> Iterator[str]:
    head = ("exits", "tries", "failed", "share", "up", "down", "connect ms", "cost")
    yield '<div class="wide"><table><thead><tr>'
    yield f'<th scope="col">{escape(report.by)}</th>'
    yield "".join(f'<th scope="col">{each}</th>' for each in head)
    yield "</tr></thead><tbody>"
    for part in report.parts:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _cells(part))
        yield f"<tr><td>{escape(part.name)}</td>{cells}</tr>"
    yield "</tbody></table></div>"


def _cells(part: Part) -> Sequence[str]:
    return (
        str(part.exits),
        str(part.tries),
        str(part.failed),
        f"{part.failed_share:.1%}",
        size(part.up),
        size(part.down),
        milliseconds(part.connect),
        "-" if part.cost is None else f"{part.cost:.2f}",
    )


def _over_time(
    title: str, report: Report, values: Sequence[int], failed: Sequence[int] = ()
) -> Iterator[str]:
    """A bar for each step, of which the lower part has failed."""
    is_bytes = title == "Bytes"
    highest = max(values, default=0)
    step = "hour" if report.step == 3600 else "day"
    told = size(highest) if is_bytes else str(highest)
    yield f"<h2>{title} by {step}</h2>"
    yield (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{title} by {step}, {escape(told)} at most">'
    )
    yield f'<text x="0" y="12">{escape(told)}</text>'
    bottom, width = _HEIGHT - _BOTTOM, (_WIDTH - _LEFT) / max(len(values), 1)
    for place, value in enumerate(values):
        x = _LEFT + place * width
        if highest and value:
            yield from _bar(x, width, bottom, (bottom - 4) * value / highest, "ok")
            if failed and failed[place]:
                share = min(failed[place], value) / highest
                yield from _bar(x, width, bottom, (bottom - 4) * share, "bad")
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{_WIDTH}" y2="{bottom}"/>'
    for place in sorted({0, len(values) // 2, len(values) - 1} - {-1}):
        at = time.strftime("%m-%d %H:%M", time.gmtime(report.points[place].at))
        anchor = "end" if place and place == len(values) - 1 else "start"
        x = _LEFT + (place + (anchor == "end")) * width
        yield f'<text x="{x:.1f}" y="{_HEIGHT - 4}" text-anchor="{anchor}">{at}</text>'
    yield "</svg>"


def _bar(x: float, width: float, bottom: float, height: float, kind: str) -> Iterator[str]:
    gap = min(1.0, width / 8)
    yield (
        f'<rect class="{kind}" x="{x + gap:.2f}" y="{bottom - height:.2f}"'
        f' width="{width - 2 * gap:.2f}" height="{height:.2f}"/>'
    )


def _bars(title: str, values: Sequence[tuple[str, float]], form: str) -> Iterator[str]:
    """A bar for each part, the longest first; nothing if all are zero."""
    shown = sorted((each for each in values if each[1]), key=lambda each: -each[1])[:_MOST_BARS]
    if not shown:
        return
    highest = shown[0][1]
    height = 22 * len(shown)
    yield f"<h2>{title}</h2>"
    yield f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{title}">'
    for place, (name, value) in enumerate(shown):
        y = 22 * place
        told = form.format(value) if form else size(value)
        width = (_WIDTH - 320) * value / highest
        yield f'<text x="0" y="{y + 14}">{escape(name[:32])}</text>'
        yield f'<rect class="ok" x="220" y="{y + 3}" width="{width:.1f}" height="14"/>'
        yield f'<text x="{226 + width:.1f}" y="{y + 14}">{escape(told)}</text>'
    yield "</svg>"
