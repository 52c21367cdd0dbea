"""Lists of exits are followed as they change, and what goes wrong with one changes nothing."""

from __future__ import annotations

import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import gevent
import pytest
from gevent.event import Event
from gevent.queue import Queue

from gsocks.errors import ConfigError
from gsocks.exits.spec import ExitSpec
from gsocks.http.url import WebUrl
from gsocks.rotation import watch
from gsocks.rotation.cache import ListCache
from gsocks.rotation.sources import Source, UrlSource, parse_source
from gsocks.rotation.watch import ExitListWatcher, read_source
from tests.support.engine import eventually
from tests.support.ports import free_port
from tests.support.proxies import honest
from tests.support.waiting import TOO_LONG
from tests.support.web import Talk, Web, ok, web

pytestmark = pytest.mark.usefixtures("never_hangs", "nothing_left")

OWN = ExitSpec.parse("http://10.0.0.1:80")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(watch, "POLL_INTERVAL", 0.005)
    monkeypatch.setattr(watch, "RETRY_DELAY", 0.01)
    caplog.set_level(logging.INFO)


class Followed:
    """A feed, and what it tells."""

    def __init__(self, sources: Sequence[Source], own: Sequence[ExitSpec] = ()) -> None:
        self.feed = ExitListWatcher(own, sources)
        self._told: Queue[list[ExitSpec]] = Queue()
        self.first = hosts(self.feed.begin(wait=TOO_LONG))
        self.feed.follow(self._told.put)

    def next(self) -> list[str]:
        """The hosts that it tells of next."""
        return hosts(self._told.get(timeout=TOO_LONG / 2))

    def polled(self, times: int) -> None:
        """Wait until each list has been polled so many times more, from begin to end."""
        for watcher in self.feed._watchers:
            ended: Queue[None] = Queue()
            poll = watcher._poll

            def note(poll: Callable[[], None] = poll, ended: Queue[None] = ended) -> None:
                poll()
                ended.put(None)

            with patch.object(watcher, "_poll", note):
                for _ in range(times):
                    ended.get(timeout=TOO_LONG)

    @property
    def told(self) -> int:
        return self._told.qsize()

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.close()


def hosts(exits: Sequence[ExitSpec]) -> list[str]:
    return [spec.host for spec in exits]


def lines(*numbers: int) -> str:
    return "".join(f"10.0.0.{number}:80\n" for number in numbers)


def addresses(*numbers: int) -> list[str]:
    return [f"10.0.0.{number}" for number in numbers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(lines(7, 8))
    return path


def in_file(path: Path, **options: object) -> Source:
    return parse_source({"file": str(path), **options})


def at_url(server: Web, folder: Path, **options: object) -> Source:
    entry = {"url": f"http://{server.address}/list?key=secret", "interval": "1h", **options}
    return parse_source(entry, folder)


def kept_in(folder: Path) -> Path:
    (kept,) = (each for each in folder.glob(".exits-*") if each.suffix != ".lock")
    return kept


# --- files ----------------------------------------------------------------------------------


def test_the_exits_of_all_lists_come_behind_those_of_the_config_each_once(
    path: Path, tmp_path: Path
) -> None:
    (tmp_path / "other.txt").write_text(lines(8, 9, 1))
    with Followed([in_file(path), in_file(tmp_path / "other.txt")], [OWN]) as followed:
        assert followed.first == addresses(1, 7, 8, 9)


def test_a_file_that_changes_is_read_again_and_told_of_once(path: Path) -> None:
    with Followed([in_file(path)]) as followed:
        path.write_text(lines(8, 9))
        assert followed.next() == addresses(8, 9)
        os.utime(path)
        followed.polled(3)  # seen, found steady and read, and once more
        assert not followed.told


READABLE = "has secrets and can be read by others (chmod 600 mends it)"


@pytest.mark.parametrize(
    ("line", "is_secret"),
    [
        ("http://u:p@10.0.0.7:80", True),
        ("10.0.0.7:80:u:p", True),
        ("http://apikey@10.0.0.7:80", True),
        ("http://10.0.0.7:80", False),
    ],
)
def test_a_list_with_passwords_that_others_may_read_is_warned_of_once(
    path: Path, line: str, is_secret: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(f"{lines(8)}{line}\n")
    path.chmod(0o640)
    with Followed([in_file(path)]) as followed:
        assert followed.first == addresses(8, 7)
        os.utime(path)
        followed.polled(3)
        assert caplog.text.count(f"{path} {READABLE}") == is_secret
        path.chmod(0o600)
        followed.polled(3)
    assert caplog.text.count(READABLE) == is_secret
    path.chmod(0o644)
    read_source(in_file(path))
    assert caplog.text.count(READABLE) == 2 * is_secret
    assert "u:p" not in caplog.text
    assert "apikey" not in caplog.text


def test_no_older_exits_are_told_of_after_newer_ones(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(lines(1))
    told: list[list[str]] = []
    went_on, go_on = Event(), Event()

    def take(exits: Sequence[ExitSpec]) -> None:
        """As an update does, which gives way to others."""
        went_on.set()
        go_on.wait()
        told.append(hosts(exits))

    with Followed([in_file(path), in_file(other)]) as followed:
        followed.feed.follow(take)
        path.write_text(lines(8, 9))
        went_on.wait()
        other.write_text(lines(2, 3))
        eventually(lambda: len(followed.feed._watchers[1].exits) == 2)
        gevent.idle()
        go_on.set()
        eventually(lambda: len(told) == 2)
    assert told == [addresses(8, 9, 1), addresses(8, 9, 2, 3)]


def test_a_file_moved_into_place_is_read_though_it_is_as_old_and_as_long(path: Path) -> None:
    with Followed([in_file(path)]) as followed:
        other = path.with_name("new")
        other.write_text(lines(5, 6))
        was = path.stat()
        os.utime(other, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert other.stat().st_size == was.st_size
        other.rename(path)
        assert followed.next() == addresses(5, 6)


def test_a_file_that_is_being_written_is_not_taken_for_whole(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: Queue[object] = Queue()
    state_of = watch.state_of  # type: ignore[attr-defined]

    def look(of: Path) -> object:
        found = state_of(of)
        looks.put(found)
        return found

    with Followed([in_file(path)]) as followed:
        monkeypatch.setattr(watch, "state_of", look)
        with path.open("w") as file:  # which empties it
            for number in range(20, 30):
                file.write(lines(number))
                file.flush()
                looks.queue.clear()
                looks.get(timeout=TOO_LONG)  # looked at once: it has grown since the last look
        assert followed.next() == addresses(*range(20, 30))
        assert not followed.told


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no exit in it"),
        (b"# all gone\n", "no exit in it"),
        (b"<html>secret</html>", "looks like a web page"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not text"),
        (b"secret\nsecret\n", "line 1: not an exit"),
        (b"#" * 16 * 1024 * 1024 + b"#", "larger than 16MiB"),
    ],
    ids=["empty", "comments", "html", "binary", "words", "giant"],
)
def test_a_wrong_file_leaves_the_exits_of_before_and_is_told_once(
    path: Path, content: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Followed([in_file(path)], [OWN]) as followed:
        path.write_bytes(content)
        eventually(lambda: why in caplog.text)
        assert "can be read again" not in caplog.text
        os.utime(path)  # and so it is read again
        followed.polled(3)
        assert caplog.text.count(why) == 1
        assert "keeping the previous 2 exits" in caplog.text
        assert not followed.told
        path.write_text(lines(9))
        assert followed.next() == addresses(1, 9)
        eventually(lambda: f"{path}: can be read again" in caplog.text)
    assert "secret" not in caplog.text


def test_a_file_that_goes_leaves_its_exits_until_it_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Followed([in_file(path)]) as followed:
        path.rename(path.with_name("away"))
        eventually(lambda: "No such file" in caplog.text)
        path.mkdir()
        eventually(lambda: "Is a directory" in caplog.text)
        path.rmdir()
        path.with_name("away").rename(path)
        eventually(lambda: "can be read again" in caplog.text)
        assert not followed.told


def test_a_start_without_any_exit_is_refused_and_says_why(path: Path, tmp_path: Path) -> None:
    path.write_text("")
    os.mkfifo(tmp_path / "pipe")
    sources = [in_file(path), in_file(tmp_path / "gone"), in_file(tmp_path / "pipe")]
    with pytest.raises(ConfigError) as caught:
        ExitListWatcher([], sources).begin()
    for told in (f"{path}: no exit in it", "gone: No such file", "pipe: not a file"):
        assert told in str(caught.value)
    with Followed(sources, [OWN]) as followed:
        assert followed.first == addresses(1)


def test_bad_lines_are_named_and_beyond_ten_counted(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_text(lines(7, 7) + "joe:secret@\n" * 25)
    with Followed([in_file(path)]) as followed:
        assert followed.first == addresses(7)
    assert f"{path}: line 12 skipped: not an exit" in caplog.text
    assert "line 13" not in caplog.text
    assert f"{path}: 15 more entries skipped" in caplog.text
    assert f"{path}: 1 exits, 1 duplicates" in caplog.text
    assert "secret" not in caplog.text


def test_a_long_list_is_read_while_others_are_served(path: Path) -> None:
    path.write_text("".join(f"10.{n >> 8}.{n & 255}.7:80\n" for n in range(30_000)))
    turns = 0

    def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            gevent.sleep(0.001)  # as others that are served: their turns are counted

    others = gevent.spawn(take_turns)
    with Followed([in_file(path)]) as followed:
        others.kill()
        assert len(followed.first) == 30_000
    assert turns > 5


# --- other sources ----------------------------------------------------------------------------


def test_other_sources_take_the_place_of_those_that_were_there(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(lines(20))
    with Followed([in_file(path)]) as followed:
        (watcher,) = followed.feed._watchers
        assert hosts(followed.feed.replace([OWN], [in_file(other)])) == addresses(1, 20)
        path.write_text(lines(9))
        other.write_text(lines(21))
        assert followed.next() == addresses(1, 21)
        eventually(lambda: not watcher._greenlet)  # a greenlet that has ended is false
        assert not followed.told


def test_a_list_that_stays_is_read_at_once_when_sources_are_replaced(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Followed([in_file(path)]) as followed:
        monkeypatch.setattr(watch, "POLL_INTERVAL", TOO_LONG)
        followed.polled(1)  # the last time with the short pause
        path.write_text(lines(9))
        assert hosts(followed.feed.replace([], [in_file(path)])) == addresses(9)


def test_the_same_list_may_come_to_have_other_options(path: Path) -> None:
    with Followed([in_file(path)]) as followed:
        exits = followed.feed.replace([], [in_file(path, country="de", scheme="socks5")])
        assert [(spec.scheme, spec.country) for spec in exits] == [("socks5", "de")] * 2


def test_sources_without_any_exit_change_nothing(path: Path, tmp_path: Path) -> None:
    with Followed([in_file(path)]) as followed:
        with pytest.raises(ConfigError, match=r"no exits: .*gone: No such file"):
            followed.feed.replace([], [in_file(tmp_path / "gone")])
        path.write_text(lines(9))
        assert followed.next() == addresses(9)


# --- URLs -------------------------------------------------------------------------------------


def answer(text: str, *fields: bytes) -> bytes:
    return ok(text.encode(), *fields)


def test_a_url_is_fetched_and_what_it_says_is_kept_for_its_owner_only(tmp_path: Path) -> None:
    with web(answer(lines(7, 8))) as server:
        with Followed([at_url(server, tmp_path, country="de")]) as followed:
            assert followed.first == addresses(7, 8)
        kept = kept_in(tmp_path)
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(f"{kept}.lock").stat().st_mode) == 0o600
        found = read_source(at_url(server, tmp_path))
        assert found is not None
        assert hosts(found.exits) == addresses(7, 8)
        assert len(server.heads) == 1
    assert b"secret" not in kept.read_bytes()


def test_a_start_uses_what_was_kept_at_once_and_fetches_behind(tmp_path: Path) -> None:
    with web(None) as server:
        source = at_url(server, tmp_path, interval="1s")
        beginning = gevent.spawn(Followed, [source])
        with server.next() as talk:
            talk.say(answer(lines(7)))
        beginning.get().feed.close()
        os.utime(kept_in(tmp_path), (0, 0))  # it was long ago
        with Followed([source]) as followed:
            assert followed.first == addresses(7)
            with server.next() as talk:
                talk.say(answer(lines(8)))
            assert followed.next() == addresses(8)


def test_what_was_kept_by_a_clock_that_is_ahead_is_as_old_as_what_was_kept_now(
    tmp_path: Path,
) -> None:
    kept = ListCache(tmp_path / "kept", WebUrl.parse("http://lists.example/"), 100)
    kept.write(b"10.0.0.7:80", {})
    os.utime(tmp_path / "kept", (2**33, 2**33))  # in the year 2242
    cached = kept.read()
    assert cached is not None
    assert cached.age == 0


def test_what_is_fresh_is_not_fetched_again_at_each_start_but_is_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    with web(answer(lines(7))) as server:
        source = at_url(server, tmp_path)
        for _ in range(3):
            with Followed([source]) as followed:
                followed.polled(2)
        assert len(server.heads) == 1
        with Followed([source]) as followed:
            followed.feed.replace([], [source])
            eventually(lambda: len(server.heads) == 2)


def test_it_is_fetched_at_its_interval_and_asked_whether_it_has_changed(tmp_path: Path) -> None:
    with web(None) as server:
        source = at_url(server, tmp_path)
        assert isinstance(source, UrlSource)
        source = replace(source, interval=0.05)
        beginning = gevent.spawn(Followed, [source])
        with server.next() as talk:
            assert b"if-none-match" not in talk.head.lower()
            talk.say(answer(lines(7), b'ETag: "one"', b"Last-Modified: then"))
        with beginning.get() as followed:
            with server.next() as talk:
                assert b'\r\nIf-None-Match: "one"\r\nIf-Modified-Since: then\r\n' in talk.head
                talk.say(b"HTTP/1.1 304 Not Modified\r\n\r\n")
            with server.next() as talk:
                assert b'"one"' in talk.head
                talk.say(answer(lines(8)))
            assert followed.next() == addresses(8)
            assert not followed.told


def test_of_those_who_share_what_is_kept_one_fetches_and_another_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls: Counter[object] = Counter()
    poll = watch._UrlFollower._poll

    def note(self: watch._UrlFollower) -> None:
        poll(self)
        polls[self] += 1

    monkeypatch.setattr(watch._UrlFollower, "_poll", note)
    with web(None) as server:
        source = at_url(server, tmp_path)
        beginnings = [gevent.spawn(Followed, [source]) for _ in range(3)]
        with server.next() as talk:
            # the others poll again and again, without a fetch
            eventually(lambda: sorted(polls.values())[-2:-1] >= [3] or len(server.heads) > 1)
            talk.say(answer(lines(7)))
        first, *others = [beginning.get() for beginning in beginnings]
        assert {tuple(each.first) for each in (first, *others)} == {tuple(addresses(7))}
        assert len(server.heads) == 1
        first.feed.replace([], [source])
        with server.next() as talk:
            talk.say(answer(lines(8)))
        assert [each.next() for each in (first, *others)] == [addresses(8)] * 3
        first.feed.close()
        for each in others:
            each.feed.replace([], [source])
        with server.next() as talk:
            talk.say(answer(lines(9)))
        assert [each.next() for each in others] == [addresses(9)] * 2
        assert len(server.heads) == 3
        for each in others:
            each.feed.close()


def _hangs(talk: Talk) -> None:
    talk.sock.recv(1)


def _never_ends(talk: Talk) -> None:
    talk.say(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        talk.say(b"10.0.0.99:80\n" * 5000)


FAULTS: dict[str, tuple[bytes | Callable[[Talk], object], str]] = {
    "500": (b"HTTP/1.1 500 secret\r\nContent-Length: 6\r\n\r\nsecret", "answers with status 500"),
    "garbage": (b"\0\1\2\3 secret\r\n\r\n", "response is not HTTP"),
    "web page": (answer("<html>secret"), "no list of exits (looks like a web page)"),
    "empty": (answer(""), "no exit in it"),
    "quota": (answer('{"error": "secret"}'), "no list of exits (JSON without a list"),
    "hangs": (_hangs, "no whole answer within 0.1 s"),
    "circle": (b"HTTP/1.1 301 X\r\nLocation: /secret\r\n\r\n", "redirects more than 5 times"),
    "giant": (_never_ends, "more than 16MiB"),
    "304 unasked": (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answers with status 304"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_url_that_fails_leaves_its_exits_and_is_told_once_and_asked_again(
    fault: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, why = FAULTS[fault]
    monkeypatch.setattr(watch, "FETCH_TIMEOUT", 0.1 if fault == "hangs" else TOO_LONG)
    well = [True]

    def serve(talk: Talk) -> None:
        if well[0]:
            talk.say(answer(lines(7)))
        elif isinstance(said, bytes):
            talk.say(said)
        else:
            said(talk)

    with web(serve) as server:
        source = at_url(server, tmp_path)
        with Followed([source]) as followed:
            kept = kept_in(tmp_path).read_bytes()
            well[0] = False
            followed.feed.replace([], [source])
            eventually(lambda: why in caplog.text)
            asked = len(server.heads)
            eventually(lambda: len(server.heads) > asked + 1)
            assert caplog.text.count(why) == 1
            assert "keeping the previous 1 exits" in caplog.text
            assert kept_in(tmp_path).read_bytes() == kept
            well[0] = True
            eventually(lambda: "can be read again" in caplog.text)
            assert not followed.told
    assert "secret" not in caplog.text


def test_a_provider_that_is_gone_is_not_waited_for_where_a_list_is_kept(tmp_path: Path) -> None:
    with web(answer(lines(7))) as server:
        source = at_url(server, tmp_path)
        Followed([source]).feed.close()
    os.utime(kept_in(tmp_path), (0, 0))
    with Followed([source]) as followed:
        assert followed.first == addresses(7)


def test_a_start_that_waits_for_a_list_says_for_which(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "WAIT_LOGGED", 0.05)
    caplog.set_level(logging.INFO, "gsocks.sources")
    with web(_hangs) as server:
        source = at_url(server, tmp_path)
        begun = gevent.spawn(ExitListWatcher([], [source]).begin, wait=90.0)
        eventually(lambda: f"waiting up to 1m30s for {source}" in caplog.text)
        begun.kill()


def test_without_a_list_a_start_waits_so_long_and_goes_on_with_others_if_there_are_any(
    tmp_path: Path,
) -> None:
    with web(_hangs) as server:
        source = at_url(server, tmp_path)
        with pytest.raises(ConfigError, match=r"no exits: http://127.*: no answer yet"):
            ExitListWatcher([], [source]).begin(wait=0.05)
        begun = ExitListWatcher([OWN], [source])
        assert hosts(begun.begin(wait=0.05)) == addresses(1)
        begun.close()
    port = free_port()
    source = parse_source({"url": f"http://127.0.0.1:{port}/"}, tmp_path)
    with pytest.raises(ConfigError, match=r"no exits: .* refused"):
        ExitListWatcher([], [source]).begin()


def test_a_list_that_comes_late_is_told_when_it_comes(tmp_path: Path) -> None:
    with web(None) as server:
        late = ExitListWatcher([OWN], [at_url(server, tmp_path)])
        assert hosts(late.begin(wait=0.02)) == addresses(1)
        told: Queue[list[ExitSpec]] = Queue()
        late.follow(told.put)
        with server.next() as talk:
            talk.say(answer(lines(7)))
        assert hosts(told.get(timeout=TOO_LONG)) == addresses(1, 7)
        late.close()


def test_where_nothing_can_be_kept_it_is_said_once_and_the_list_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with web(answer(lines(7))) as server:
        source = at_url(server, tmp_path / "a folder that is not there")
        with Followed([source]) as followed:
            assert followed.first == addresses(7)
            followed.feed.replace([], [source])
            eventually(lambda: len(server.heads) == 2)
    assert caplog.text.count("can't be cached in") == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{}\n" + lines(66).encode(), b"[]\n", b"\xff\xff", b"{" * 100_000, b'{"of": 1}\n'],
)
def test_a_spoiled_file_of_what_was_kept_is_as_none(content: bytes, tmp_path: Path) -> None:
    with web(answer(lines(7))) as server:
        source = at_url(server, tmp_path)
        Followed([source]).feed.close()
        kept_in(tmp_path).write_bytes(content)
        with Followed([source]) as followed:
            assert followed.first == addresses(7)
        assert len(server.heads) == 2


def test_what_was_kept_of_another_url_is_not_taken_for_its_own(tmp_path: Path) -> None:
    with web(answer(lines(7))) as server:
        Followed([at_url(server, tmp_path, cache="kept")]).feed.close()
        other = {"url": f"http://{server.address}/other", "cache": "kept"}
        assert read_source(parse_source(other, tmp_path)) is None


def test_the_fields_of_a_file_go_with_the_request(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token = tmp_path / "token"
    token.write_text("# ours\n\nAuthorization: Token secret\nX-Plan:  big \n")
    with web(answer(lines(7))) as server:
        source = at_url(server, tmp_path, header_file="token")
        with Followed([source]) as followed:
            assert b"\r\nAuthorization: Token secret\r\nX-Plan: big\r\n" in server.heads[0]
            token.write_text("Authorization secret\n")
            followed.feed.replace([], [source])
            eventually(lambda: f"{token}: line 1: expected Name: value" in caplog.text)
            token.write_bytes(b"X: \xff\n")
            eventually(lambda: f"{token}: not ASCII" in caplog.text)
            token.unlink()
            eventually(lambda: f"{token}: No such file" in caplog.text)
    assert caplog.text.count(f"{token} {READABLE}") == 1
    assert "secret" not in caplog.text.replace(READABLE, "")


def test_a_server_has_no_say_over_the_private_network_by_redirects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with web(answer(lines(7))) as secret:
        there = f"http://localhost:{secret.address.port}/latest/meta-data/"
        moved = f"HTTP/1.1 302 Found\r\nLocation: {there}\r\n\r\n".encode()
        with web(moved) as server:
            for via in ({}, {"fetch_via": "direct"}):
                source = at_url(server, tmp_path, private="false", **via)
                with pytest.raises(ConfigError, match=r"localhost.*forbidden: rule 'deny private'"):
                    ExitListWatcher([], [source]).begin()
            assert not secret.heads
            with Followed([at_url(server, tmp_path, private="true")]) as followed:
                assert followed.first == addresses(7)


def test_a_server_has_no_say_over_the_private_network_by_its_own_name_either(
    tmp_path: Path,
) -> None:
    """Its name, or another port of it, may be an address of this network when it is asked again."""
    with web(answer(lines(7))) as secret:
        for there in (secret.address.port, ""):
            moved = f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{there}/meta\r\n\r\n"
            with web(moved.encode()) as server:
                source = at_url(server, tmp_path, private="false", cache=f"cache-{there}")
                with pytest.raises(ConfigError, match="forbidden: rule 'deny private'"):
                    ExitListWatcher([], [source]).begin()
        moved = "HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\n\r\n"
        with web(moved.encode()) as server:
            source = at_url(server, tmp_path, private="false")
            with pytest.raises(ConfigError, match="forbidden: rule 'deny private'"):
                ExitListWatcher([], [source]).begin()
            assert len(server.heads) == 1
        assert not secret.heads


def test_a_redirect_is_judged_whatever_exit_would_follow_it(tmp_path: Path) -> None:
    with web(answer(lines(7))) as secret, honest("http") as proxy:
        moved = f"HTTP/1.1 302 Found\r\nLocation: http://{secret.address}/meta\r\n\r\n".encode()
        with web(moved) as server:
            source = at_url(server, tmp_path, private="false", fetch_via=f"http://{proxy}")
            with pytest.raises(ConfigError, match="forbidden: rule 'deny private'"):
                ExitListWatcher([], [source]).begin()
            assert not secret.heads
            source = at_url(server, tmp_path, private="true", fetch_via=f"http://{proxy}")
            with Followed([source]) as followed:
                assert followed.first == addresses(7)


def test_a_list_may_be_fetched_through_an_exit(tmp_path: Path) -> None:
    with web(answer(lines(7))) as server, honest("http") as proxy:
        with Followed([at_url(server, tmp_path, fetch_via=f"http://{proxy}")]) as followed:
            assert followed.first == addresses(7)
        dead = at_url(server, tmp_path, fetch_via=f"http://127.0.0.1:{free_port()}", cache="x")
        with pytest.raises(ConfigError, match=r"no exits: .*http://127.*refused"):
            ExitListWatcher([], [dead]).begin()
        assert len(server.heads) == 1
