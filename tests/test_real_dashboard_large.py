"""The dashboard of 10,000 exits in Chromium: how much its first view brings, and how soon.

Bytes are asserted; the times are left in build/dashboard.json, as they are those of the machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import needs
from tests.support.program import ROOT, Program
from tests.support.waiting import TOO_LONG

playwright = pytest.importorskip("playwright.sync_api")

EXITS = 10_000

#: bytes of the first view, of all that it loads together
MAX_BYTES = 150 * 1024

CONFIG = """
admin: {listen: 127.0.0.1:0}
state: {file: state.db}
local:
  listen: 127.0.0.1:0
  checks: {connect: false}
  exit_sources: [{file: list.txt}]
"""

#: notes when the view is complete, by the page's own clock
WATCH = """
new MutationObserver(() => {
  if (document.body?.dataset.shown) window.shownAt ??= performance.now();
}).observe(document, {subtree: true, childList: true, attributes: true});
"""


def first_view(browser: Any, at: str, view: str, cookies: Any) -> dict[str, float]:
    """What a browser that has nothing yet loads, and the milliseconds until the view stands."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_cookies(cookies)
    context.add_init_script(WATCH)
    page = context.new_page()
    page.set_default_timeout(TOO_LONG * 1000 / 4)
    loaded: list[Any] = []
    page.on("requestfinished", lambda request: loaded.append(request))
    page.goto(f"{at}/#/{view}")
    page.wait_for_selector(f"body[data-shown={view}]")
    took = page.evaluate("window.shownAt")
    sizes = [request.sizes() for request in loaded]
    asked = [request.url for request in loaded]
    assert len(asked) == len(set(asked)), asked
    count = sum(each["responseHeadersSize"] + each["responseBodySize"] for each in sizes)
    assert len(sizes) > 6  # the page, its parts, and what it asks the API
    context.close()
    return {"bytes": count, "ms": round(took)}


def test_the_first_view_of_10_000_exits_is_small(tmp_path: Path) -> None:
    chromium = needs.program("chromium")
    lines = [f"socks5://127.1.{number // 250}.{number % 250}:9\n" for number in range(EXITS)]
    (tmp_path / "list.txt").write_text("".join(lines))
    (tmp_path / "c.yaml").write_text(CONFIG)
    with (
        Program("-c", tmp_path / "c.yaml", cwd=tmp_path) as program,
        playwright.sync_playwright() as started,
    ):
        at = program.wait_for(r"admin: listening on (http://\S+) ")[0][1]
        token = (tmp_path / "admin.token").read_text().strip()
        browser = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        context = browser.new_context()
        answer = context.request.post(
            f"{at}/sign-in", data={"token": token}, headers={"Origin": at}
        )
        assert answer.ok, answer.text()
        found = context.request.get(f"{at}/v1/exits?limit=1").json()
        assert found["total"] == EXITS
        views: dict[str, dict[str, float]] = {}
        for _ in range(3):
            for view in ("overview", "exits", "sessions", "users", "config"):
                now = first_view(browser, at, view, context.cookies())
                # the most bytes; and the least time, as other programs can only add to it
                before = views.setdefault(view, now)
                views[view] = {
                    "bytes": max(now["bytes"], before["bytes"]),
                    "ms": min(now["ms"], before["ms"]),
                }
        browser.close()
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "dashboard.json").write_text(json.dumps(views, indent=1) + "\n")
    assert all(0 < each["bytes"] <= MAX_BYTES for each in views.values()), views
