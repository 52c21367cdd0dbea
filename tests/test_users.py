"""Who may come in, and what it costs to find out."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import gevent
import pytest
from gevent.socket import socketpair
from nacl.pwhash import argon2id

from gsocks import users
from gsocks.errors import ConfigError, LoginsBusy
from gsocks.users import (
    AT_ONCE,
    MAX_MEMORY,
    MAX_PASSES,
    MAX_WAITING,
    REMEMBERED_FOR,
    Users,
    hash_password,
)

TOO_LONG = 20


def cheap(password: bytes) -> str:
    """A real hash at the least that libsodium does, some 20 us."""
    return argon2id.str(password, opslimit=1, memlimit=argon2id.MEMLIMIT_MIN).decode("ascii")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _never_hangs() -> Iterator[None]:
    with gevent.Timeout(TOO_LONG):
        yield


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes]]:
    """Each verification that Argon2 has done: the hash and the password."""
    done: list[tuple[str, bytes]] = []
    fits = users._fits

    def counted(stored: str, password: bytes) -> bool:
        done.append((stored, password))
        return fits(stored, password)

    monkeypatch.setattr(users, "_fits", counted)
    return done


class Gate:
    """Stands for Argon2 in its threads: tells who has come, and waits to let each through.

    The right password is ``right``, for everybody.
    """

    def __init__(self) -> None:
        self._told, self._tell = socketpair()
        self._tell.setblocking(True)
        self._open = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.inside = 0
        self.most_inside = 0
        self.total = 0

    def fits(self, stored: str, password: bytes) -> bool:
        with self._lock:
            self.inside += 1
            self.total += 1
            self.most_inside = max(self.most_inside, self.inside)
        self._tell._sock.send(b".")  # gevent's own send belongs to the loop's thread
        self._open.acquire()
        with self._lock:
            self.inside -= 1
        return password == b"right"

    def wait_for_one(self) -> None:
        assert self._told.recv(1) == b"."

    def let_through(self, count: int) -> None:
        self._open.release(count)

    def close(self) -> None:
        self._open.release(1000)
        self._told.close()
        self._tell.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(users, "_fits", gate.fits)
    yield gate
    gate.close()


# --- who comes in ---------------------------------------------------------------------------


def test_the_right_password_comes_in_and_others_do_not() -> None:
    door = Users({"alice": cheap(b"secret"), "bob": cheap(b"hidden")})
    assert door.verify("alice", b"secret")
    assert door.verify("bob", b"hidden")
    assert not door.verify("alice", b"hidden")
    assert not door.verify("alice", b"")
    assert not door.verify("alice", b"secret\x00")
    assert not door.verify("Alice", b"secret")
    assert not door.verify("mallory", b"secret")
    assert not door.verify("", b"")


@pytest.mark.parametrize("password", [b"", b"\x00", b"a\x00b", b"\xff" * 255])
def test_any_bytes_may_be_a_password(password: bytes) -> None:
    door = Users({"": cheap(password)})
    assert door.verify("", password)
    assert not door.verify("", password + b"x")


def test_nobody_comes_in_where_there_are_no_users() -> None:
    assert not Users({}).verify("alice", b"secret")


def test_a_name_that_is_no_text_comes_in_as_little_as_any() -> None:
    assert not Users({"alice": cheap(b"secret")}).verify("\ud800\udcff", b"secret")


def test_a_hash_of_ours_is_libsodiums_interactive_one() -> None:
    stored = hash_password(b"secret")
    assert stored.startswith("$argon2id$v=19$m=65536,t=2,p=1$")
    assert hash_password(b"secret") != stored
    assert Users({"alice": stored}).verify("alice", b"secret")


def test_a_hash_of_another_implementation_is_taken() -> None:
    # argon2-cffi 25: hash_secret(b"password", b"somesaltsomesalt", 2, 256, 4, 32, Type.ID)
    stored = (
        "$argon2id$v=19$m=256,t=2,p=4$c29tZXNhbHRzb21lc2FsdA"
        "$5CZ0y4EFo8aGNnTOqyj0Zv3Ly//FEsr0bPZ6BGnEO9U"
    )
    assert Users({"alice": stored}).verify("alice", b"password")


def test_names_can_be_asked_for() -> None:
    door = Users({"alice": cheap(b"secret")})
    assert "alice" in door
    assert "bob" not in door


def test_a_repr_has_names_and_no_hashes() -> None:
    stored = cheap(b"secret")
    door = Users({"bob": stored, "alice": stored})
    assert door.verify("alice", b"secret")
    assert repr(door) == "<Users ['alice', 'bob']>"


def test_argon2_answers_and_never_raises_in_its_thread() -> None:
    stored = cheap(b"secret")
    assert users._fits(stored, b"secret") is True
    assert users._fits(stored, b"wrong") is False


# --- hashes that can't be -------------------------------------------------------------------

GOOD = cheap(b"secret")
PREFIX, _, TAG = GOOD.rpartition("$")


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "secret",
        "$2b$12$abcdefghijklmnopqrstuuu",
        GOOD.replace("argon2id", "argon2i"),
        GOOD.replace("v=19", "v=16"),
        GOOD.replace("$v=19", ""),
        GOOD.replace("m=8", "m=08"),
        GOOD.replace("m=8", "m=0"),
        GOOD.replace("m=8", "m=7"),
        GOOD.replace("p=1", "p=2"),  # 8 KiB for each lane is the least
        GOOD.replace("t=1", "t=0"),
        GOOD.replace("t=1", "t=-1"),
        GOOD.replace("m=8,t=1", "t=1,m=8"),
        GOOD.replace("p=1", "p=1,data=AAAA"),
        GOOD + "\n",
        GOOD + "=",
        GOOD + "\x00",
        GOOD + "$",
        " " + GOOD,
        PREFIX,
        PREFIX + "$",
        PREFIX + "$" + "A" * 5,  # no base64 has that length
        PREFIX + "$" + "A" * 20,  # 15 bytes, and 16 are the least
        PREFIX + "$" + "A" * 21 + "B",  # 16 bytes, and bits that belong to none
        PREFIX + "$" + "A" * 90,  # longer than libsodium takes
        "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAA$" + TAG,  # a salt of 7 bytes
        GOOD.replace(TAG, "ü" * len(TAG)),
        GOOD.replace("m=8", "m=\u0668"),  # a digit, but not ours
    ],
)
def test_what_is_no_hash_is_refused_by_the_users_name(stored: str) -> None:
    with pytest.raises(ConfigError, match="'bob'") as caught:
        Users({"alice": GOOD, "bob": stored})
    assert TAG not in str(caught.value)
    assert stored == "" or stored not in str(caught.value)


@pytest.mark.parametrize(
    "demand",
    [
        f"m={MAX_MEMORY + 1},t=1,p=1",
        f"m={8 * 1024 * 1024},t=1,p=1",
        "m=99999999999999999999,t=1,p=1",
        f"m=8,t={MAX_PASSES + 1},p=1",
        "m=1024,t=1,p=17",
    ],
)
def test_a_hash_that_demands_too_much_is_refused(demand: str) -> None:
    with pytest.raises(ConfigError, match=r"'bob'.*demands") as caught:
        Users({"bob": GOOD.replace("m=8,t=1,p=1", demand)})
    assert TAG not in str(caught.value)


def test_a_hash_that_demands_just_as_much_as_allowed_is_taken() -> None:
    demand = f"m={MAX_MEMORY},t={MAX_PASSES},p=16"
    assert "bob" in Users({"bob": GOOD.replace("m=8,t=1,p=1", demand)})


def test_everything_that_is_taken_libsodium_can_read() -> None:
    """It answers "wrong password" to what it can't read, so only the right one can tell."""
    for memory, passes in ((8, 1), (9, 2), (1000, 3)):
        made = argon2id.str(b"secret", opslimit=passes, memlimit=memory * 1024).decode("ascii")
        assert Users({"alice": made}).verify("alice", b"secret")


# --- what it costs --------------------------------------------------------------------------


def test_a_right_password_is_worked_out_once(work: list[tuple[str, bytes]]) -> None:
    door = Users({"alice": cheap(b"secret")})
    assert all(door.verify("alice", b"secret") for _ in range(100))
    assert len(work) == 1


def test_a_wrong_password_is_worked_out_each_time(work: list[tuple[str, bytes]]) -> None:
    door = Users({"alice": cheap(b"secret")})
    assert not any(door.verify("alice", b"wrong") for _ in range(5))
    assert len(work) == 5


def test_a_remembered_user_with_a_wrong_password_stays_out(work: list[tuple[str, bytes]]) -> None:
    door = Users({"alice": cheap(b"secret")})
    assert door.verify("alice", b"secret")
    assert not door.verify("alice", b"wrong")
    assert len(work) == 2
    assert door.verify("alice", b"secret")  # and is not forgotten for that
    assert len(work) == 2


def test_an_unknown_user_costs_what_a_wrong_password_costs(work: list[tuple[str, bytes]]) -> None:
    stored = argon2id.str(b"secret", opslimit=3, memlimit=1024 * 1024).decode("ascii")
    door = Users({"alice": cheap(b"secret"), "bob": stored})
    assert not door.verify("mallory", b"secret")
    [(decoy, _)] = work
    assert (
        decoy.split("$")[:4] == stored.split("$")[:4] == ["", "argon2id", "v=19", "m=1024,t=3,p=1"]
    )
    assert list(map(len, decoy.split("$"))) == list(map(len, stored.split("$")))


def test_where_there_are_no_users_it_costs_what_it_costs_elsewhere(
    work: list[tuple[str, bytes]],
) -> None:
    assert not Users({}).verify("alice", b"secret")
    assert work[0][0].startswith("$argon2id$v=19$m=65536,t=2,p=1$")


def test_a_decoy_is_read_by_libsodium_and_fits_nobody() -> None:
    assert users._cost("decoy", Users({})._decoy) == users._DEFAULT_COST


def test_a_right_password_is_remembered_for_ten_minutes(work: list[tuple[str, bytes]]) -> None:
    clock = Clock()
    door = Users({"alice": cheap(b"secret")}, clock)
    for after, verifications in ((0, 1), (REMEMBERED_FOR - 1, 1), (1, 2), (REMEMBERED_FOR, 3)):
        clock.now += after
        assert door.verify("alice", b"secret")
        assert len(work) == verifications
    assert REMEMBERED_FOR == 600


def test_the_number_of_the_remembered_is_bounded(
    work: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "MAX_REMEMBERED", 3)
    stored = cheap(b"secret")
    door = Users(dict.fromkeys("abcd", stored))
    for name in "abcd":
        assert door.verify(name, b"secret")
    assert len(door._remembered) == 3
    assert all(door.verify(name, b"secret") for name in "bcd")
    assert len(work) == 4
    assert door.verify("a", b"secret")  # was the first, and so was forgotten
    assert len(work) == 5


def test_the_remembered_passwords_are_keyed_by_the_process() -> None:
    hashes = {"alice": cheap(b"secret")}
    doors = Users(hashes), Users(hashes)
    for door in doors:
        assert door.verify("alice", b"secret")
    assert doors[0]._remembered["alice"].digest != doors[1]._remembered["alice"].digest


# --- many at once ---------------------------------------------------------------------------


def test_few_are_verified_at_a_time_and_more_wait(gate: Gate) -> None:
    door = Users({f"user{n}": GOOD for n in range(6)})
    logins = [gevent.spawn(door.verify, f"user{n}", b"right") for n in range(6)]
    for _ in range(AT_ONCE):
        gate.wait_for_one()
    gate.let_through(6)
    assert [login.get() for login in logins] == [True] * 6
    assert gate.most_inside == AT_ONCE
    assert gate.total == 6


def test_many_connections_of_one_user_are_verified_hardly_more_than_once(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    logins = [gevent.spawn(door.verify, "alice", b"right") for _ in range(100)]
    gate.wait_for_one()
    gate.let_through(100)
    assert all(login.get() for login in logins)
    assert gate.total <= AT_ONCE


def test_others_are_served_while_one_is_verified(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    login = gevent.spawn(door.verify, "alice", b"right")
    gate.wait_for_one()
    gevent.idle()  # the loop goes round
    assert not login.ready()
    gate.let_through(1)
    assert login.get()


def test_the_remembered_do_not_wait_behind_the_unknown(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    gate.let_through(1)
    assert door.verify("alice", b"right")
    strangers = [gevent.spawn(door.verify, f"mallory{n}", b"guess") for n in range(10)]
    for _ in range(1 + AT_ONCE):
        gate.wait_for_one()
    assert door.verify("alice", b"right")
    gate.let_through(10)
    assert not any(stranger.get() for stranger in strangers)


def test_a_login_that_was_given_up_holds_its_turn_until_its_thread_is_done(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    given_up = [gevent.spawn(door.verify, f"mallory{n}", b"guess") for n in range(AT_ONCE)]
    for _ in range(AT_ONCE):
        gate.wait_for_one()
    gevent.killall(given_up)
    alice = gevent.spawn(door.verify, "alice", b"right")
    gevent.idle()
    assert gate.inside == gate.total == AT_ONCE
    gate.let_through(AT_ONCE + 1)
    assert alice.get()
    assert gate.most_inside == AT_ONCE


def test_a_login_that_was_given_up_is_remembered_if_it_was_right(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "AT_ONCE", 1)
    door = Users({"alice": GOOD})
    login = gevent.spawn(door.verify, "alice", b"right")
    gate.wait_for_one()
    login.kill()
    again = gevent.spawn(door.verify, "alice", b"right")
    gevent.idle()  # it waits for its turn
    gate.let_through(1)
    assert again.get()
    assert gate.total == 1


def test_a_login_that_was_given_up_while_it_waited_costs_nothing(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    first = [gevent.spawn(door.verify, f"mallory{n}", b"guess") for n in range(AT_ONCE)]
    for _ in range(AT_ONCE):
        gate.wait_for_one()
    waiting = [gevent.spawn(door.verify, f"trudy{n}", b"guess") for n in range(10)]
    gevent.idle()
    gevent.killall(waiting)
    gate.let_through(100)
    assert door.verify("alice", b"right")
    gevent.joinall(first)
    assert gate.total == AT_ONCE + 1


def test_many_connections_with_one_wrong_password_cost_one_verification(gate: Gate) -> None:
    door = Users({"alice": GOOD})
    logins = [gevent.spawn(door.verify, "alice", b"guess") for _ in range(100)]
    gate.wait_for_one()
    gate.let_through(100)
    assert not any(login.get() for login in logins)
    assert gate.total == 1


def test_the_same_password_of_others_is_a_question_of_its_own(gate: Gate) -> None:
    door = Users({"alice": GOOD, "bob": GOOD})
    names = ["alice", "bob", "mallory", "trudy"]
    logins = [gevent.spawn(door.verify, name, b"right") for name in names]
    gate.let_through(100)
    assert [login.get() for login in logins] == [True, True, False, False]
    assert gate.total == 4


def test_no_more_logins_wait_than_can_be_verified_in_time(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_WAITING == 100
    monkeypatch.setattr(users, "MAX_WAITING", 5)
    door = Users({"alice": GOOD})
    gate.let_through(1)
    assert door.verify("alice", b"right")
    waiting = [gevent.spawn(door.verify, f"mallory{n}", b"guess") for n in range(5)]
    gevent.idle()
    with pytest.raises(LoginsBusy):
        door.verify("trudy", b"guess")
    same = gevent.spawn(door.verify, "mallory4", b"guess")  # asks nothing new
    gevent.idle()
    assert not same.ready()
    assert door.verify("alice", b"right"), "who is remembered doesn't wait"
    gate.let_through(100)
    assert not any(login.get() for login in [*waiting, same])
    assert not door.verify("trudy", b"guess")
    assert gate.total == 7


def test_those_who_give_up_while_they_wait_leave_their_places(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users, "MAX_WAITING", AT_ONCE + 2)
    door = Users({"alice": GOOD})
    begun = [gevent.spawn(door.verify, f"mallory{n}", b"guess") for n in range(AT_ONCE)]
    for _ in range(AT_ONCE):
        gate.wait_for_one()
    twins = [gevent.spawn(door.verify, "trudy", b"guess") for _ in range(2)]
    other = gevent.spawn(door.verify, "trudy", b"another")
    gevent.idle()
    twins[0].kill()
    with pytest.raises(LoginsBusy):  # one of the twins still wants to know
        door.verify("alice", b"right")
    twins[1].kill()
    alice = gevent.spawn(door.verify, "alice", b"right")
    gate.let_through(100)
    assert alice.get()
    assert not other.get()
    gevent.joinall(begun)
    assert gate.total == AT_ONCE + 2


# --- reload ---------------------------------------------------------------------------------


def test_replaced_users_come_in_by_their_new_passwords_only() -> None:
    door = Users({"alice": cheap(b"old"), "bob": cheap(b"hidden")})
    assert door.verify("alice", b"old")
    assert door.verify("bob", b"hidden")
    door.replace({"alice": cheap(b"new"), "carol": cheap(b"fresh")})
    assert not door._remembered
    assert not door.verify("alice", b"old")
    assert door.verify("alice", b"new")
    assert not door.verify("bob", b"hidden")
    assert door.verify("carol", b"fresh")
    assert "bob" not in door


def test_who_has_not_changed_is_still_remembered(work: list[tuple[str, bytes]]) -> None:
    alice, bob = cheap(b"secret"), cheap(b"hidden")
    door = Users({"alice": alice, "bob": bob})
    assert door.verify("alice", b"secret")
    assert door.verify("bob", b"hidden")
    door.replace({"alice": alice})
    assert door.verify("alice", b"secret")
    assert len(work) == 2
    assert list(door._remembered) == ["alice"]


def test_a_replacement_that_cannot_be_leaves_all_as_it_was() -> None:
    door = Users({"alice": cheap(b"secret")})
    with pytest.raises(ConfigError, match="'bob'"):
        door.replace({"bob": "not a hash"})
    assert door.verify("alice", b"secret")
    assert "bob" not in door


@pytest.mark.parametrize("others", [{}, {"alice": cheap(b"new")}])
def test_a_login_under_way_when_its_user_is_replaced_is_refused(
    gate: Gate, others: dict[str, str]
) -> None:
    door = Users({"alice": GOOD})
    login = gevent.spawn(door.verify, "alice", b"right")
    gate.wait_for_one()
    door.replace(others)
    gate.let_through(1)
    assert not login.get()
    assert not door._remembered


def test_the_users_own_mapping_may_change_without_changing_who_comes_in() -> None:
    hashes = {"alice": cheap(b"secret")}
    door = Users(hashes)
    hashes.clear()
    assert door.verify("alice", b"secret")
