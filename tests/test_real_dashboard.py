"""The dashboard in Chromium: what is done there happens, and it looks as it should.

Screenshots of every view are left in build/screenshots; `make screenshots` puts some into
docs/images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsocks.access.users import hash_password
from tests.support import needs
from tests.support.program import ROOT, Program, run, web_server
from tests.support.waiting import TOO_LONG, eventually

playwright = pytest.importorskip("playwright.sync_api")

AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
VIEWS = ("overview", "exits", "sessions", "users", "requests", "config")

#: what would run, or be an element, if it were taken for markup
HOSTILE = "<img src=x onerror=alert(1)>"

CONFIG = """
admin: {{listen: 127.0.0.1:0, tokens: [{{name: eve, role: viewer, file: eve.token}}]}}
state: {{file: state.db}}
requests: {{}}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  users: {{{hostile!r}: '{hash}', alice: '{hash}'}}
  exits:
    - {{url: direct, name: berlin-1, country: de, tags: [fast]}}
    - {{url: 'direct://?source=127.0.0.0/24', name: paris-1, country: fr}}
    - {{url: 'socks5://user:secret@127.0.0.1:9', name: lost-1, country: us, tags: [cheap]}}
"""


class Dashboard:
    """A running gsocks, and a browser."""

    def __init__(self, program: Program, folder: Path, page: Any) -> None:
        self.at = program.wait_for(r"admin: listening on (http://\S+) ")[0][1]
        self.token = (folder / "admin.token").read_text().strip()
        self.page = page
        self.program = program
        self.config = folder / "c.yaml"

    def ask(self, target: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.page.request.get(self.at + target, headers=headers).json()

    def show(self, view: str) -> None:
        self.page.evaluate("delete document.body.dataset.shown")
        at = f"{self.at}/#/{view}"
        if self.page.url == at:
            self.page.reload()
        else:
            self.page.goto(at)
        name = view.partition("?")[0]
        self.page.wait_for_selector(f"body[data-shown={name}]")

    def press(self, button: str, **given: str) -> None:
        """Press a button, and answer what it asks."""
        self.page.get_by_role("button", name=button, exact=True).first.click()
        for field, text in given.items():
            self.page.locator(f"#ask-{field}").fill(text)
        self.page.locator("#ask-yes").click()

    def state_of(self, exit_: str) -> str:
        return str(self.ask(f"/v1/exits/{exit_}")["state"])


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    chromium = needs.program("chromium")
    folder = tmp_path_factory.mktemp("dashboard")
    hashed = hash_password(b"pw")
    (folder / "c.yaml").write_text(CONFIG.format(hostile=HOSTILE, hash=hashed))
    (folder / "eve.token").write_text("a viewer's token".replace(" ", "-"))
    (folder / "eve.token").chmod(0o600)
    with Program("-c", folder / "c.yaml", cwd=folder) as program, web_server() as port:
        local = program.port()
        for user in (HOSTILE, "alice-session-cart17", "alice-session-a.b"):
            for place in (f"127.0.0.1:{port}/text/page", "127.0.0.1:9/"):
                run(
                    "curl",
                    *("-sS", "-m", "5", "--proxy", f"socks5h://127.0.0.1:{local}"),
                    *("--proxy-user", f"{user}:pw", f"http://{place}"),
                )
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.set_default_timeout(TOO_LONG * 1000 / 4)
            yield Dashboard(program, folder, page)
            browser.close()


def test_the_dashboard_in_a_browser(dashboard: Dashboard) -> None:
    page = dashboard.page
    said: list[str] = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            said.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append("a dialog"))

    # signing in, by the keyboard
    page.goto(dashboard.at)
    page.wait_for_selector("#token:focus")
    page.keyboard.type("wrong-token-wrong-token")
    page.keyboard.press("Enter")
    page.get_by_text("that is not the token").wait_for()
    page.locator("#token").fill(dashboard.token)
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-shown=overview]")
    page.get_by_text("1 worker, v").wait_for()
    # the answers to the wrong token, and to what was asked without one, are told as errors
    assert all("401" in line for line in said), said
    said.clear()

    look_at_all(dashboard)
    assert page.locator("img").count() == 0

    act_on_all(dashboard)
    assert not said

    page.get_by_role("button", name="Sign out").click()
    page.wait_for_selector("#sign-in:not([hidden])")
    assert page.evaluate("fetch('/v1/me').then(answer => answer.status)") == 401


def look_at_all(dashboard: Dashboard) -> None:
    """Each view, wide and narrow: no serious finding of axe-core, nothing wider than the screen."""
    page, folder = dashboard.page, ROOT / "build" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    for view in (*VIEWS, "exits?exit=lost-1"):
        name = "exit" if "=" in view else view
        for width in (1440, 390):
            page.set_viewport_size({"width": width, "height": 900})
            if width == 1440:
                dashboard.show(view)
                page.wait_for_timeout(1200 if view == "overview" else 100)  # an event's figures
            page.screenshot(path=str(folder / f"{name}-{width}.png"), full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert serious(page) == [], view
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="dark")
    dashboard.show("exits")
    assert serious(page) == []
    page.screenshot(path=str(folder / "exits-dark.png"))
    page.emulate_media(color_scheme="light")
    dashboard.show("users")
    assert page.get_by_text(HOSTILE, exact=True).count() == 1
    if os.environ.get("SCREENSHOTS"):
        for name in ("overview-1440", "exits-1440"):
            shutil.copy(folder / f"{name}.png", ROOT / "docs" / "images")


def serious(page: Any) -> list[str]:
    """What axe-core finds."""
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE.read_text())  # the page's own policy lets no script in
    found = page.evaluate("axe.run()")["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html']}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


def act_on_all(dashboard: Dashboard) -> None:
    """What each button does to the running gateway."""
    page = dashboard.page
    dashboard.show("exits?exit=berlin-1")
    dashboard.press("Ban", seconds="600")
    eventually(lambda: dashboard.state_of("berlin-1") == "banned")
    dashboard.show("exits?exit=berlin-1")
    dashboard.press("Unban")
    eventually(lambda: dashboard.state_of("berlin-1") != "banned")
    dashboard.show("exits?exit=lost-1")
    page.get_by_role("button", name="Check now").click()
    page.locator(".notice.wrong, .notice").first.wait_for()

    dashboard.show("exits")
    page.get_by_label("select berlin-1").check()
    page.get_by_label("select paris-1").check()
    dashboard.press("Drain")
    eventually(lambda: dashboard.state_of("paris-1") == "draining")
    assert dashboard.state_of("berlin-1") == "draining"
    dashboard.show("exits?state=draining")
    assert page.get_by_label("select berlin-1").count() == 1
    assert page.get_by_label("select lost-1").count() == 0
    page.get_by_label("select berlin-1").check()
    page.get_by_label("select paris-1").check()
    dashboard.press("Undrain")
    eventually(lambda: dashboard.state_of("paris-1") != "draining")

    dashboard.show("exits")
    dashboard.press("Add an exit", name="new-1", url="socks5://u:hidden@127.0.0.1:8")
    eventually(lambda: dashboard.ask("/v1/exits")["total"] == 4)
    dashboard.show("exits?exit=new-1")
    dashboard.press("Remove")
    page.get_by_role("heading", name="Exits", exact=True).wait_for()
    assert dashboard.ask("/v1/exits")["total"] == 3

    dashboard.show("sessions")
    dashboard.press("rotate cart17")
    page.get_by_text("cart17 moves at its next request").wait_for()
    dashboard.show("users")
    dashboard.press("Add a user", name="bob", password="another")
    eventually(lambda: "bob" in [each["name"] for each in dashboard.ask("/v1/users")["items"]])

    dashboard.show("requests")
    page.get_by_label("story of").first.click()
    page.get_by_text("Candidates").wait_for()

    text = dashboard.config.read_text()
    dashboard.config.write_text(text.replace("secret@127.0.0.1:9", "secret@127.0.0.1:7"))
    dashboard.show("config")
    page.get_by_role("button", name="Check the file").click()
    page.get_by_text("A reload would change 1 key").wait_for()
    dashboard.press("Reload")
    eventually(lambda: dashboard.ask("/v1/exits?text=127.0.0.1:7")["total"] == 1)
