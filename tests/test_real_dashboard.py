"""The dashboard in Chromium: what is done there happens, and it looks as it should.

Screenshots of every view are left in build/screenshots; `make screenshots` puts them into
docs/images.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from gsocks.access.users import hash_password
from tests.support import needs
from tests.support.program import ROOT, Program, run, web_server
from tests.support.redis_server import redis_server
from tests.support.waiting import TOO_LONG, eventually

playwright = pytest.importorskip("playwright.sync_api")

AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
VIEWS = ("overview", "exits", "sessions", "users", "requests", "config")

#: what would run, or be an element, if it were taken for markup
HOSTILE = "<img src=x onerror=alert(1)>"

#: a user, and the name of a file of exits, which may come from a provider
USER, LIST, ROUNDS = HOSTILE, f"{HOSTILE}.txt", 1

if os.environ.get("SCREENSHOTS"):
    USER, LIST, ROUNDS = "bob", "list.txt", 40

CONFIG = """
admin: {{listen: 127.0.0.1:0, tokens: [{{name: eve, role: viewer, file: eve.token}}]}}
state: {{file: state.db}}
requests: {{}}
local:
  listen: 127.0.0.1:0
  rules: [allow all]
  users: {{{user!r}: '{hash}', alice: '{hash}'}}
  exits:
    - {{url: direct, name: berlin-1, country: de, tags: [fast]}}
    - {{url: 'direct://?source=127.0.0.0/24', name: paris-1, country: fr}}
    - {{url: 'socks5://user:secret@127.0.0.1:9', name: lost-1, country: us, tags: [cheap]}}
  exit_sources: [{{file: {list!r}}}]
"""

#: a proxy whose user is markup; comments are not read
EXITS = f"""\
# {HOSTILE}
socks5://{quote(USER, safe="")}:pa@127.0.0.1:22 # {HOSTILE}
"""


def ask_for_host(host: str, port: int) -> None:
    """A SOCKS5 request for a host that is none, as alice."""
    with socket.create_connection(("127.0.0.1", port), TOO_LONG) as sock:
        sock.sendall(b"\5\1\2\1\5alice\2pw")
        name = host.encode()
        sock.sendall(b"\5\1\0\3" + bytes([len(name)]) + name + b"\0\x50")
        while sock.recv(4096):
            pass


class Dashboard:
    """A running gsocks, and a browser."""

    def __init__(self, program: Program, folder: Path, page: Any) -> None:
        self.at = program.wait_for(r"admin: listening on (http://\S+) ")[0][1]
        self.token = (folder / "admin.token").read_text().strip()
        self.page = page
        self.program = program
        self.local = program.port()
        self.config = folder / "c.yaml"

    def sign_in(self, token: str) -> None:
        self.page.goto(self.at)
        self.page.locator("#token").fill(token)
        self.page.keyboard.press("Enter")
        self.page.wait_for_selector("body[data-shown=overview]")

    def sign_out(self) -> None:
        self.page.get_by_role("button", name="Sign out").click()
        self.page.wait_for_selector("#sign-in:not([hidden])")

    def ask(self, target: str) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        return self.page.request.get(self.at + target, headers=headers).json()

    def tell(self, target: str, body: str) -> None:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        assert self.page.request.post(self.at + target, headers=headers, data=body).ok

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
        # of the view, as what was asked before may have a button of that name
        self.page.locator("#view").get_by_role("button", name=button, exact=True).first.click()
        for field, text in given.items():
            self.page.locator(f"#ask-{field}").fill(text)
        self.page.locator("#ask-yes").click()

    def not_used_for(self, exit_: str) -> list[str]:
        return [each["domain"] for each in self.ask(f"/v1/exits/{exit_}")["domains"]]

    def users(self) -> list[str]:
        return [each["name"] for each in self.ask("/v1/users")["items"]]

    def state_of(self, exit_: str) -> str:
        return str(self.ask(f"/v1/exits/{exit_}")["state"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = needs.program("chromium")
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        yield found
        found.close()


def new_page(browser: Any) -> Any:
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    page.set_default_timeout(TOO_LONG * 1000 / 4)
    return page


@pytest.fixture(scope="module")
def dashboard(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    folder = tmp_path_factory.mktemp("dashboard")
    hashed = hash_password(b"pw")
    (folder / "c.yaml").write_text(CONFIG.format(user=USER, hash=hashed, list=LIST))
    (folder / LIST).write_text(EXITS)
    (folder / "eve.token").write_text("a viewer's token".replace(" ", "-"))
    (folder / "eve.token").chmod(0o600)
    with Program("-c", folder / "c.yaml", cwd=folder) as program, web_server() as port:
        local = program.port()
        for user in (USER, "alice-session-cart17", "alice-session-a.b") * ROUNDS:
            for place in (f"127.0.0.1:{port}/text/page", "127.0.0.1:9/"):
                run(
                    "curl",
                    *("-sS", "-m", "5", "--proxy", f"socks5h://127.0.0.1:{local}"),
                    *("--proxy-user", f"{user}:pw", f"http://{place}"),
                )
        ask_for_host(HOSTILE, local)
        found = Dashboard(program, folder, new_page(browser))
        for command, body in (("ban", '{"seconds": 60}'), ("unban", "{}")) * 2:
            found.tell(f"/v1/exits/lost-1/{command}", body)  # so that something has changed
        if os.environ.get("SCREENSHOTS"):
            # with figures, and without the paths of the machine on which they are taken
            eventually(lambda: found.ask("/v1/top?kind=user")["items"])
            at = re.compile(r"/v1/(?!events)")
            found.page.route(at, lambda route: as_installed(route, folder))
        yield found


@pytest.fixture
def said(dashboard: Dashboard) -> Iterator[list[str]]:
    """What the browser complains of."""
    found: list[str] = []

    def heard(message: Any) -> None:
        if message.type in ("error", "warning"):
            found.append(message.text)

    def failed(error: Any) -> None:
        found.append(str(error))

    def asked(_: Any) -> None:
        found.append("a dialog")

    handlers = {"console": heard, "pageerror": failed, "dialog": asked}
    for name, handler in handlers.items():
        dashboard.page.on(name, handler)
    yield found
    for name, handler in handlers.items():
        dashboard.page.remove_listener(name, handler)


def test_the_dashboard_in_a_browser(dashboard: Dashboard, said: list[str]) -> None:
    page = dashboard.page

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

    dashboard.sign_out()
    assert page.evaluate("fetch('/v1/me').then(answer => answer.status)") == 401


def test_a_viewer_has_no_buttons_that_act(dashboard: Dashboard, said: list[str]) -> None:
    page = dashboard.page
    dashboard.sign_in("a-viewer's-token")
    said.clear()  # who was not signed in yet
    acts = {"Ban", "Drain", "Check now", "Report", "Add an exit", "Add a user", "Reload", "Rotate"}
    for view in (*VIEWS, "exits?exit=lost-1"):
        dashboard.show(view)
        names = set(page.locator("button:visible").all_inner_texts())
        assert not names & {*acts, "Change", "Remove", "Replace", "Unban", "Undrain"}, view
        assert page.locator("input[type=checkbox]").count() == 0
    dashboard.sign_out()
    assert not said


def test_whatever_the_api_tells_is_shown_as_text(dashboard: Dashboard, said: list[str]) -> None:
    page = dashboard.page
    dashboard.sign_in(dashboard.token)
    said.clear()  # who was not signed in yet
    page.route(re.compile(r"/v1/(?!events|me)"), with_markup)
    for view in (*VIEWS, "exits?exit=lost-1"):
        dashboard.show(view)
        assert page.get_by_text(HOSTILE).count() > 2, view
        for button in ("Story", "Moves", "Check the file"):
            found = page.get_by_role("button", name=re.compile(button))
            if found.count():
                found.first.click()
                page.locator("h2", has_text=re.compile("^Request|^Moves of|^A reload")).wait_for()
        assert page.locator("img, #view b b").count() == 0, view
    page.unroute_all(behavior="wait")
    dashboard.show("overview")
    dashboard.sign_out()
    assert not said


def test_a_view_that_is_slow_to_come_does_not_stand_for_the_next_one(
    dashboard: Dashboard, said: list[str]
) -> None:
    page = dashboard.page
    held: list[Any] = []
    dashboard.sign_in(dashboard.token)
    dashboard.show("users")
    page.route("**/v1/top?*", lambda route: held.append(route))  # Playwright asks for its arguments
    page.evaluate("location.hash = '#/overview'")
    eventually(lambda: page.evaluate("true") and len(held) == 3)
    page.get_by_role("link", name="Sessions").click()
    page.wait_for_selector("body[data-shown=sessions]")
    for route in held:
        with page.expect_response(route.request.url):
            route.continue_()
    page.unroute_all(behavior="wait")
    page.evaluate("fetch('/v1/me').then(each => each.text())")  # the answers before have been read
    assert page.evaluate("document.body.dataset.shown") == "sessions"
    dashboard.sign_out()


def test_numbers_and_times_are_written_out(dashboard: Dashboard) -> None:
    page = dashboard.page
    page.goto(dashboard.at)
    told = page.evaluate("""import("/web/dom.js").then(({count, clock, moment}) => {
      const at = new Date(2026, 2, 4, 5, 6, 7).getTime() / 1000;
      const numbers = [0, 999, 1000, 1234567, -1000].map(count);
      return [numbers, clock(at), clock(at, false), moment(at)];
    })""")
    numbers = ["0", "999", "1,000", "1,234,567", "-1,000"]
    assert told == [numbers, "05:06:07", "05:06", "2026-03-04 05:06:07"]


def test_the_range_that_is_shown_is_seen_among_those_that_may_be_chosen(
    dashboard: Dashboard,
) -> None:
    page = dashboard.page
    dashboard.sign_in(dashboard.token)
    for chosen, other in (("Last day", "Last hour"), ("Last hour", "Last day")):
        page.get_by_role("button", name=chosen).click()
        page.locator(f"button[aria-pressed=true]:text-is('{chosen}')").wait_for()
        looks = [
            page.get_by_role("button", name=name).evaluate(
                "each => getComputedStyle(each).boxShadow"
            )
            for name in (chosen, other)
        ]
        assert looks[0] != "none" == looks[1]
    dashboard.sign_out()


def as_installed(route: Any, folder: Path) -> None:
    """Passes on an answer of a gateway whose files are in ``folder``, as if they were in /etc."""
    answer = route.fetch()
    route.fulfill(response=answer, body=answer.text().replace(str(folder), "/etc/gsocks"))


def with_markup(route: Any) -> None:
    """Passes on an answer with markup in place of each text."""
    answer = route.fetch()
    route.fulfill(response=answer, json=marked(answer.json()))


def marked(value: Any) -> Any:
    if isinstance(value, str):
        return f"{HOSTILE}<b>{value}</b>"
    if isinstance(value, list):
        return [marked(each) for each in value]
    if isinstance(value, dict):
        return {name: marked(each) for name, each in value.items()}
    return value


def test_the_gateways_that_share_a_store_in_a_browser(browser: Any, tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as server:

        def gateway(name: str, workers: int) -> Program:
            path = tmp_path / f"{name}.yaml"
            path.write_text(
                f"workers: {workers}\n"
                f"state: {{url: '{server.url}', gateway: {name}}}\n"
                "admin: {listen: 127.0.0.1:0}\n"
                "local: {listen: 127.0.0.1:0}\n"
            )
            return Program("-c", path, cwd=tmp_path)

        with gateway("one", 1) as one, gateway("two", 2) as two:
            two.wait_for(r"admin: listening on (http://\S+) ", 2)
            page = new_page(browser)
            found = Dashboard(one, tmp_path, page)
            page.goto(found.at)
            page.locator("#token").fill(found.token)
            page.keyboard.press("Enter")
            page.get_by_role("link", name="Fleet").click()
            page.wait_for_selector("body[data-shown=fleet]")
            rows = page.locator("tbody tr")
            eventually(lambda: rows.count() == 3)
            told = [rows.nth(at).inner_text().split("\t") for at in range(3)]
            assert [each[:2] for each in told] == [["one", "0"], ["two", "0"], ["two", "1"]]
            assert [each[3] for each in told] == ["ready"] * 3
            assert [each[-1] == "this one" for each in told] == [True, False, False]
            page.get_by_text(f"Store {server.url}: ok").wait_for()
            assert serious(page) == []
            page.set_viewport_size({"width": 390, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= 390
            two.signal(signal.SIGTERM)
            assert two.end() == 0
            eventually(lambda: rows.count() == 1)
            server.kill()
            page.locator("p .bad").wait_for()


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
                if view == "overview":
                    page.get_by_text("loop lag p99").wait_for()
            height = page.evaluate("document.documentElement.scrollHeight")
            page.screenshot(
                path=str(folder / f"{name}-{width}.png"),
                full_page=True,
                clip={"x": 0, "y": 0, "width": width, "height": min(height, 1300)},
            )
            assert page.evaluate("document.documentElement.scrollWidth") <= width, view
        assert serious(page) == [], view
    page.set_viewport_size({"width": 1440, "height": 900})
    page.emulate_media(color_scheme="dark")
    for view in VIEWS:
        dashboard.show(view)
        assert serious(page) == [], view
    dashboard.show("overview")
    page.screenshot(path=str(folder / "dark.png"))
    page.emulate_media(color_scheme="light")
    dashboard.show("users")
    assert page.get_by_text(USER, exact=True).count() == 1
    if os.environ.get("SCREENSHOTS"):
        for path in folder.glob("*.png"):
            shutil.copy(path, ROOT / "docs" / "images")


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
    dashboard.show("exits?exit=berlin-1")
    # asked back, and left again by the keyboard
    page.get_by_role("button", name="Drain", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_role("dialog").get_by_text("Drain berlin-1?").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="hidden")
    assert dashboard.state_of("berlin-1") != "draining"

    dashboard.show("exits?exit=lost-1")
    dashboard.press("Check now")
    page.locator(".notice", has_text="lost-1: ").first.wait_for()
    for _ in range(3):  # so many eject an exit for a domain
        dashboard.show("exits?exit=lost-1")
        dashboard.press("Report", domain="shop.example", ok="failed")
        page.locator(".notice", has_text="Report: done").last.wait_for()
    assert dashboard.not_used_for("lost-1") == ["shop.example"]

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
    page.get_by_label("select berlin-1").check()
    page.get_by_label("select lost-1").check()
    dashboard.press("Check now")
    page.locator(".notice", has_text="Check now: lost-1: ").wait_for()
    for _ in range(3):
        dashboard.show("exits")
        page.get_by_label("select berlin-1").check()
        page.get_by_label("select paris-1").check()
        dashboard.press("Report", domain="shop.example", ok="failed")
        page.locator(".notice", has_text="Report: 2 done").wait_for()
    for name in ("berlin-1", "paris-1"):
        assert dashboard.not_used_for(name) == ["shop.example"]

    before = dashboard.ask("/v1/exits")["total"]
    dashboard.show("exits")
    dashboard.press("Add an exit", name="new-1", url="socks5://u:hidden@127.0.0.1:8")
    eventually(lambda: dashboard.ask("/v1/exits")["total"] == before + 1)
    dashboard.show("exits?exit=new-1")
    dashboard.press("Remove")
    page.get_by_role("heading", name="Exits", exact=True).wait_for()
    assert dashboard.ask("/v1/exits")["total"] == before
    dashboard.show("exits?exit=lost-1")
    dashboard.press("Replace", url="socks5://127.0.0.1:8", country="se", tags="x, y")
    page.get_by_text("lost-1 was put").wait_for()
    replaced = dashboard.ask("/v1/exits/lost-1")
    assert (replaced["source"], replaced["tags"]) == ("api", ["x", "y"])
    dashboard.show("exits?exit=lost-1")
    dashboard.press("Reset")
    eventually(lambda: dashboard.ask("/v1/exits/lost-1")["source"] == "config")

    dashboard.show("sessions")
    dashboard.press("rotate cart17")
    page.get_by_text("cart17 moves at its next request").wait_for()
    dashboard.show("users")
    dashboard.press("Add a user", name="carol", password="another")
    eventually(lambda: "carol" in dashboard.users())
    dashboard.show("users")
    dashboard.press("remove carol")
    eventually(lambda: "carol" not in dashboard.users())
    dashboard.show("users")
    dashboard.press("change the quota of local", per_user="7", bandwidth_per_user="1048576")
    page.get_by_text("1.0 MiB/s").wait_for()
    quota = dashboard.ask("/v1/quotas")["sections"]["local"]
    assert (quota["per_user"], quota["bandwidth_per_user"]) == (7, 1 << 20)
    page.get_by_text("0 of 7").first.wait_for()
    dashboard.show("users")
    dashboard.press("change the quota of local", per_user="", bandwidth_per_user="")
    eventually(lambda: dashboard.ask("/v1/quotas")["sections"]["local"]["per_user"] is None)

    dashboard.show("requests")
    stories = page.get_by_label("story of")
    before = stories.count()
    page.get_by_role("button", name="Live").click()

    def comes() -> bool:
        ask_for_host("a b", dashboard.local)
        return bool(stories.count() > before)

    # requests from before the stream has begun are not told by it
    eventually(comes, sleep=lambda _: page.wait_for_timeout(500))
    page.get_by_role("button", name="Stop").click()
    page.get_by_label("story of").first.click()
    page.get_by_text("Candidates").wait_for()

    text = dashboard.config.read_text()
    dashboard.config.write_text(text.replace("secret@127.0.0.1:9", "secret@127.0.0.1:7"))
    dashboard.show("config")
    page.get_by_role("button", name="Check the file").click()
    page.get_by_text("A reload would change 1 key").wait_for()
    dashboard.press("Reload")
    eventually(lambda: dashboard.ask("/v1/exits?text=127.0.0.1:7")["total"] == 1)
