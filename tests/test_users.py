"""Passwords are verified in few threads, at a bounded cost, and right ones are remembered."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import gevent
import pytest
from gevent.socket import socketpair
from nacl.pwhash import argon2id

from gsocks.access import users as users_module
from gsocks.access import verifications
from gsocks.access.users import (
    MAX_MEMORY,
    MAX_PASSES,
    REMEMBER_TIME,
    Users,
    hash_password,
)
from gsocks.access.verifications import MAX_CONCURRENT, MAX_PENDING
from gsocks.errors import ConfigError, LoginsBusy
from tests.support.waiting import TOO_LONG


def cheap(password: bytes) -> str:
    """A real hash of the least cost that libsodium allows, some 20 us."""
    return argon2id.str(password, opslimit=1, memlimit=argon2id.MEMLIMIT_MIN).decode("ascii")


#: users, and the prefixes of two clients
MANY = [f"user{number}" for number in range(10)]
HERE, THERE = "192.0.2.1", "2001:db8::/64"


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
    """The hash and the password of each verification by Argon2."""
    done: list[tuple[str, bytes]] = []
    matches = users_module._matches

    def counted(stored: str, password: bytes) -> bool:
        done.append((stored, password))
        return matches(stored, password)

    monkeypatch.setattr(users_module, "_matches", counted)
    return done


class Gate:
    """Replaces Argon2 in its threads: reports each verification, and blocks it until released.

    The right password is ``right``, for every user.
    """

    def __init__(self) -> None:
        self._reported, self._report = socketpair()
        self._report.setblocking(True)
        self._released = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.running = 0
        self.most_running = 0
        self.total = 0

    def matches(self, stored: str, password: bytes) -> bool:
        with self._lock:
            self.running += 1
            self.total += 1
            self.most_running = max(self.most_running, self.running)
        os.write(self._report.fileno(), b".")  # gevent's own send belongs to the loop's thread
        self._released.acquire()
        with self._lock:
            self.running -= 1
        return password == b"right"

    def wait_for_one(self) -> None:
        assert self._reported.recv(1) == b"."

    def release(self, count: int) -> None:
        self._released.release(count)

    def close(self) -> None:
        self._released.release(1000)
        self._reported.close()
        self._report.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(users_module, "_matches", gate.matches)
    yield gate
    gate.close()


# --- passwords ------------------------------------------------------------------------------


def test_only_the_right_password_is_accepted() -> None:
    users = Users({"alice": cheap(b"secret"), "bob": cheap(b"hidden")})
    assert users.verify("alice", b"secret")
    assert users.verify("bob", b"hidden")
    assert not users.verify("alice", b"hidden")
    assert not users.verify("alice", b"")
    assert not users.verify("alice", b"secret\x00")
    assert not users.verify("Alice", b"secret")
    assert not users.verify("mallory", b"secret")
    assert not users.verify("", b"")


@pytest.mark.parametrize("password", [b"", b"\x00", b"a\x00b", b"\xff" * 255])
def test_any_bytes_may_be_a_password(password: bytes) -> None:
    users = Users({"": cheap(password)})
    assert users.verify("", password)
    assert not users.verify("", password + b"x")


def test_without_users_no_login_succeeds() -> None:
    assert not Users({}).verify("alice", b"secret")


def test_a_name_that_is_not_valid_unicode_is_an_unknown_user() -> None:
    assert not Users({"alice": cheap(b"secret")}).verify("\ud800\udcff", b"secret")


def test_a_new_hash_has_libsodiums_interactive_cost() -> None:
    stored = hash_password(b"secret")
    assert stored.startswith("$argon2id$v=19$m=65536,t=2,p=1$")
    assert hash_password(b"secret") != stored
    assert Users({"alice": stored}).verify("alice", b"secret")


def test_a_hash_of_another_implementation_is_accepted() -> None:
    # argon2-cffi 25: hash_secret(b"password", b"somesaltsomesalt", 2, 256, 4, 32, Type.ID)
    stored = (
        "$argon2id$v=19$m=256,t=2,p=4$c29tZXNhbHRzb21lc2FsdA"
        "$5CZ0y4EFo8aGNnTOqyj0Zv3Ly//FEsr0bPZ6BGnEO9U"
    )
    assert Users({"alice": stored}).verify("alice", b"password")


def test_a_name_can_be_looked_up() -> None:
    users = Users({"alice": cheap(b"secret")})
    assert "alice" in users
    assert "bob" not in users


def test_a_repr_has_names_and_no_hashes() -> None:
    stored = cheap(b"secret")
    users = Users({"bob": stored, "alice": stored})
    assert users.verify("alice", b"secret")
    assert repr(users) == "<Users ['alice', 'bob'] remembered=['alice'] pending=0>"


def test_a_verification_returns_and_never_raises_in_its_thread() -> None:
    stored = cheap(b"secret")
    assert users_module._matches(stored, b"secret") is True
    assert users_module._matches(stored, b"wrong") is False


# --- invalid hashes -------------------------------------------------------------------------

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
        GOOD.replace("p=1", "p=2"),  # at least 8 KiB for each lane
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
        PREFIX + "$" + "A" * 5,  # not a length of base64
        PREFIX + "$" + "A" * 20,  # 15 bytes, less than 16
        PREFIX + "$" + "A" * 21 + "B",  # 16 bytes, and bits that belong to no byte
        PREFIX + "$" + "A" * 90,  # longer than libsodium accepts
        "$argon2id$v=19$m=8,t=1,p=1$AAAAAAAAAA$" + TAG,  # a salt of 7 bytes
        GOOD.replace(TAG, "ü" * len(TAG)),
        GOOD.replace("m=8", "m=\u0668"),  # a digit, but not of ASCII
    ],
)
def test_an_invalid_hash_is_refused_with_the_users_name(stored: str) -> None:
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
def test_a_hash_that_requires_too_much_is_refused(demand: str) -> None:
    with pytest.raises(ConfigError, match=r"'bob'.*requires") as caught:
        Users({"bob": GOOD.replace("m=8,t=1,p=1", demand)})
    assert TAG not in str(caught.value)


def test_a_hash_that_requires_as_much_as_allowed_is_accepted() -> None:
    demand = f"m={MAX_MEMORY},t={MAX_PASSES},p=16"
    assert "bob" in Users({"bob": GOOD.replace("m=8,t=1,p=1", demand)})


def test_libsodium_can_read_every_accepted_hash() -> None:
    """It reports "wrong password" for an unreadable hash, so only the right one can show it."""
    for memory, passes in ((8, 1), (9, 2), (1000, 3)):
        made = argon2id.str(b"secret", opslimit=passes, memlimit=memory * 1024).decode("ascii")
        assert Users({"alice": made}).verify("alice", b"secret")


# --- cost -----------------------------------------------------------------------------------


def test_a_right_password_is_verified_once(work: list[tuple[str, bytes]]) -> None:
    users = Users({"alice": cheap(b"secret")})
    assert all(users.verify("alice", b"secret") for _ in range(100))
    assert len(work) == 1


def test_a_wrong_password_is_verified_each_time(work: list[tuple[str, bytes]]) -> None:
    users = Users({"alice": cheap(b"secret")})
    assert not any(users.verify("alice", b"wrong") for _ in range(5))
    assert len(work) == 5


def test_a_wrong_password_of_a_remembered_user_is_refused(work: list[tuple[str, bytes]]) -> None:
    users = Users({"alice": cheap(b"secret")})
    assert users.verify("alice", b"secret")
    assert not users.verify("alice", b"wrong")
    assert users.verify("alice", b"secret")  # and the right one is still remembered
    assert len(work) == 1, "only one password is right for a name"


def test_an_unknown_user_takes_a_turn_of_a_known_duration_and_no_thread(
    work: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("gevent.sleep", slept.append)
    clock = Clock()
    users = Users({"alice": cheap(b"secret")}, clock)
    assert not users.verify("mallory", b"guess")
    assert (len(work), slept) == (1, []), "it takes one to know how long one takes"
    for _ in range(5):
        assert not users.verify("mallory", b"guess")
    assert len(work) == 1
    assert len(slept) == 5
    assert set(slept) == set(users._durations._samples)
    clock.now += 61
    assert not users.verify("mallory", b"guess")
    assert len(work) == 2, "measured again"


def test_an_empty_password_is_verified_once_for_each_user(
    work: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be tried at any rate, since it does not count as a guess."""
    slept: list[float] = []
    monkeypatch.setattr("gevent.sleep", slept.append)
    costly = argon2id.str(b"secret", opslimit=3, memlimit=1024 * 1024).decode("ascii")
    users = Users({"alice": cheap(b"secret"), "bob": costly, "open": costly})
    assert not users.verify("bob", b"")
    for _ in range(5):
        assert not users.verify("alice", b"")
        assert not users.verify("bob", b"")
    assert len(work) == 2
    assert len(slept) == 9
    assert set(slept) == set(users._durations._samples), "as long as for an unknown user"


def test_an_empty_password_is_verified_anew_when_users_are_replaced() -> None:
    users = Users({"alice": cheap(b"secret")})
    assert not users.verify("alice", b"")
    users.replace({"alice": cheap(b"")})
    assert users.verify("alice", b"")


def test_a_user_with_a_hash_of_another_cost_is_always_verified(
    work: list[tuple[str, bytes]],
) -> None:
    costly = argon2id.str(b"secret", opslimit=3, memlimit=1024 * 1024).decode("ascii")
    users = Users({"alice": cheap(b"secret"), "bob": costly})
    assert users.verify("alice", b"secret")
    assert users.verify("bob", b"secret")
    assert not users.verify("alice", b"wrong")  # by the time of bob's it would be known as hers
    assert len(work) == 3


def test_an_unknown_user_costs_what_a_wrong_password_costs(work: list[tuple[str, bytes]]) -> None:
    stored = argon2id.str(b"secret", opslimit=3, memlimit=1024 * 1024).decode("ascii")
    users = Users({"alice": cheap(b"secret"), "bob": stored})
    assert not users.verify("mallory", b"secret")
    [(decoy, _)] = work
    assert (
        decoy.split("$")[:4] == stored.split("$")[:4] == ["", "argon2id", "v=19", "m=1024,t=3,p=1"]
    )
    assert list(map(len, decoy.split("$"))) == list(map(len, stored.split("$")))


def test_without_users_a_login_costs_what_a_default_hash_costs(
    work: list[tuple[str, bytes]],
) -> None:
    assert not Users({}).verify("alice", b"secret")
    assert work[0][0].startswith("$argon2id$v=19$m=65536,t=2,p=1$")


def test_the_decoy_is_a_hash_of_the_default_cost() -> None:
    assert users_module.check_hash("decoy", Users({})._decoy) == users_module._DEFAULT_COST


def test_a_right_password_is_remembered_for_ten_minutes(work: list[tuple[str, bytes]]) -> None:
    clock = Clock()
    users = Users({"alice": cheap(b"secret")}, clock)
    for after, count in ((0, 1), (REMEMBER_TIME - 1, 1), (1, 2), (REMEMBER_TIME, 3)):
        clock.now += after
        assert users.verify("alice", b"secret")
        assert len(work) == count
    assert REMEMBER_TIME == 600


def test_the_number_of_remembered_logins_is_bounded(
    work: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_module, "MAX_REMEMBERED", 3)
    stored = cheap(b"secret")
    users = Users(dict.fromkeys("abcd", stored))
    for name in "abcd":
        assert users.verify(name, b"secret")
    assert "remembered=['b', 'c', 'd']" in repr(users)
    assert all(users.verify(name, b"secret") for name in "bcd")
    assert len(work) == 4
    assert users.verify("a", b"secret")  # the earliest login, and so forgotten
    assert len(work) == 5


def test_remembered_passwords_are_keyed_by_each_instance() -> None:
    hashes = {"alice": cheap(b"secret")}
    both = Users(hashes), Users(hashes)
    for users in both:
        assert users.verify("alice", b"secret")
    assert both[0]._remembered["alice"].digest != both[1]._remembered["alice"].digest


# --- concurrent logins ----------------------------------------------------------------------


def test_few_logins_are_verified_at_a_time_and_more_wait(gate: Gate) -> None:
    users = Users({f"user{n}": GOOD for n in range(6)})
    logins = [gevent.spawn(users.verify, f"user{n}", b"right") for n in range(6)]
    for _ in range(MAX_CONCURRENT):
        gate.wait_for_one()
    gate.release(6)
    assert [login.get() for login in logins] == [True] * 6
    assert gate.most_running == MAX_CONCURRENT
    assert gate.total == 6


def test_many_logins_of_one_user_need_hardly_more_than_one_verification(gate: Gate) -> None:
    users = Users({"alice": GOOD})
    logins = [gevent.spawn(users.verify, "alice", b"right") for _ in range(100)]
    gate.wait_for_one()
    gate.release(100)
    assert all(login.get() for login in logins)
    assert gate.total <= MAX_CONCURRENT


def test_other_greenlets_run_during_a_verification(gate: Gate) -> None:
    users = Users({"alice": GOOD})
    login = gevent.spawn(users.verify, "alice", b"right")
    gate.wait_for_one()
    gevent.idle()  # one more turn of the event loop
    assert not login.ready()
    gate.release(1)
    assert login.get()


def test_a_remembered_login_does_not_wait_for_others(gate: Gate) -> None:
    users = Users({"alice": GOOD, **dict.fromkeys(MANY, GOOD)})
    gate.release(1)
    assert users.verify("alice", b"right")
    others = [gevent.spawn(users.verify, name, b"guess") for name in MANY]
    for _ in range(1 + MAX_CONCURRENT):
        gate.wait_for_one()
    assert users.verify("alice", b"right")
    gate.release(10)
    assert not any(login.get() for login in others)


def test_a_killed_login_holds_its_turn_until_its_thread_has_finished(gate: Gate) -> None:
    users = Users({"alice": GOOD})
    killed = [gevent.spawn(users.verify, f"mallory{n}", b"guess") for n in range(MAX_CONCURRENT)]
    for _ in range(MAX_CONCURRENT):
        gate.wait_for_one()
    gevent.killall(killed)
    alice = gevent.spawn(users.verify, "alice", b"right")
    gevent.idle()
    assert gate.running == gate.total == MAX_CONCURRENT
    gate.release(MAX_CONCURRENT + 1)
    assert alice.get()
    assert gate.most_running == MAX_CONCURRENT


def test_a_killed_login_is_remembered_if_it_was_right(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifications, "MAX_CONCURRENT", 1)
    users = Users({"alice": GOOD})
    login = gevent.spawn(users.verify, "alice", b"right")
    gate.wait_for_one()
    login.kill()
    again = gevent.spawn(users.verify, "alice", b"right")
    gevent.idle()  # it waits for its turn
    gate.release(1)
    assert again.get()
    assert gate.total == 1


def test_a_login_killed_while_it_waits_costs_nothing(gate: Gate) -> None:
    users = Users({"alice": GOOD})
    first = [gevent.spawn(users.verify, f"mallory{n}", b"guess") for n in range(MAX_CONCURRENT)]
    for _ in range(MAX_CONCURRENT):
        gate.wait_for_one()
    waiting = [gevent.spawn(users.verify, f"trudy{n}", b"guess") for n in range(10)]
    gevent.idle()
    gevent.killall(waiting)
    gate.release(100)
    assert users.verify("alice", b"right")
    gevent.joinall(first)
    assert gate.total == MAX_CONCURRENT + 1


def test_many_logins_with_one_wrong_password_cost_one_verification(gate: Gate) -> None:
    users = Users({"alice": GOOD})
    logins = [gevent.spawn(users.verify, "alice", b"guess") for _ in range(100)]
    gate.wait_for_one()
    gate.release(100)
    assert not any(login.get() for login in logins)
    assert gate.total == 1


def test_the_same_password_of_another_user_is_verified_separately(gate: Gate) -> None:
    users = Users({"alice": GOOD, "bob": GOOD})
    names = ["alice", "bob", "mallory", "trudy"]
    logins = [gevent.spawn(users.verify, name, b"right") for name in names]
    gate.release(100)
    assert [login.get() for login in logins] == [True, True, False, False]
    assert gate.total == 4


def test_no_more_logins_wait_than_can_be_verified_in_time(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_PENDING == 100
    monkeypatch.setattr(verifications, "MAX_PENDING", 5)
    users = Users({"alice": GOOD, "trudy": GOOD, **dict.fromkeys(MANY, GOOD)})
    gate.release(1)
    assert users.verify("alice", b"right")
    count = MAX_CONCURRENT + 5
    waiting = [gevent.spawn(users.verify, name, b"guess") for name in MANY[:count]]
    gevent.idle()
    with pytest.raises(LoginsBusy):
        users.verify("trudy", b"guess")
    same = gevent.spawn(users.verify, MANY[count - 1], b"guess")  # waits for a pending verification
    gevent.idle()
    assert not same.ready()
    assert users.verify("alice", b"right"), "a remembered login doesn't wait"
    gate.release(100)
    assert not any(login.get() for login in [*waiting, same])
    assert not users.verify("trudy", b"guess")
    assert gate.total == count + 2


def test_clients_with_logins_take_turns(gate: Gate) -> None:
    users = Users({"alice": GOOD, **dict.fromkeys(MANY, GOOD)})
    first = [gevent.spawn(users.verify, name, b"guess", HERE) for name in MANY]
    for _ in range(MAX_CONCURRENT):
        gate.wait_for_one()
    alice = gevent.spawn(users.verify, "alice", b"right", THERE)
    gevent.idle()
    gate.release(MAX_CONCURRENT + 2)
    assert alice.get()
    assert gate.total <= MAX_CONCURRENT + 4, "she waited for none of the others that wait"
    gate.release(100)
    assert not any(login.get() for login in first)


def test_a_login_beyond_those_that_may_wait_displaces_one_of_the_client_with_most(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifications, "MAX_PENDING", 5)
    users = Users({"alice": GOOD, "bob": GOOD, **dict.fromkeys(MANY, GOOD)})
    count = MAX_CONCURRENT + 5
    many = [gevent.spawn(users.verify, name, b"guess", HERE) for name in MANY[:count]]
    gevent.idle()
    alice = gevent.spawn(users.verify, "alice", b"right", THERE)
    gevent.idle()
    with pytest.raises(LoginsBusy):
        many[-1].get()
    with pytest.raises(LoginsBusy):
        users.verify("bob", b"right", HERE)
    gate.release(100)
    assert alice.get()
    assert not any(login.get() for login in many[:-1])


def test_verifications_have_threads_of_their_own(gate: Gate) -> None:
    """So that they wait for no name that is looked up, and none waits for them."""
    pool, released = gevent.get_hub().threadpool, threading.Event()
    looking_up = [pool.spawn(released.wait) for _ in range(pool.maxsize)]
    gate.release(1)
    assert Users({"alice": GOOD}).verify("alice", b"right")
    released.set()
    for one in looking_up:
        one.get()


def test_logins_killed_while_they_wait_free_their_places(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifications, "MAX_PENDING", 2)
    users = Users({"alice": GOOD})
    begun = [gevent.spawn(users.verify, f"mallory{n}", b"guess") for n in range(MAX_CONCURRENT)]
    for _ in range(MAX_CONCURRENT):
        gate.wait_for_one()
    twins = [gevent.spawn(users.verify, "trudy", b"guess") for _ in range(2)]
    other = gevent.spawn(users.verify, "trudy", b"another")
    gevent.idle()
    twins[0].kill()
    with pytest.raises(LoginsBusy):  # one of the twins still waits
        users.verify("alice", b"right")
    twins[1].kill()
    alice = gevent.spawn(users.verify, "alice", b"right")
    gate.release(100)
    assert alice.get()
    assert not other.get()
    gevent.joinall(begun)
    assert gate.total == MAX_CONCURRENT + 2


# --- reload ---------------------------------------------------------------------------------


def test_replaced_users_log_in_with_their_new_passwords_only() -> None:
    users = Users({"alice": cheap(b"old"), "bob": cheap(b"hidden")})
    assert users.verify("alice", b"old")
    assert users.verify("bob", b"hidden")
    users.replace({"alice": cheap(b"new"), "carol": cheap(b"fresh")})
    assert "remembered=[]" in repr(users)
    assert not users.verify("alice", b"old")
    assert users.verify("alice", b"new")
    assert not users.verify("bob", b"hidden")
    assert users.verify("carol", b"fresh")
    assert "bob" not in users


def test_an_unchanged_user_is_still_remembered(work: list[tuple[str, bytes]]) -> None:
    alice, bob = cheap(b"secret"), cheap(b"hidden")
    users = Users({"alice": alice, "bob": bob})
    assert users.verify("alice", b"secret")
    assert users.verify("bob", b"hidden")
    users.replace({"alice": alice})
    assert users.verify("alice", b"secret")
    assert len(work) == 2
    assert repr(users) == "<Users ['alice'] remembered=['alice'] pending=0>"


def test_an_invalid_replacement_changes_nothing() -> None:
    users = Users({"alice": cheap(b"secret")})
    with pytest.raises(ConfigError, match="'bob'"):
        users.replace({"bob": "not a hash"})
    assert users.verify("alice", b"secret")
    assert "bob" not in users


@pytest.mark.parametrize("others", [{}, {"alice": cheap(b"new")}])
def test_a_login_is_refused_if_its_user_is_replaced_meanwhile(
    gate: Gate, others: dict[str, str]
) -> None:
    users = Users({"alice": GOOD})
    login = gevent.spawn(users.verify, "alice", b"right")
    gate.wait_for_one()
    users.replace(others)
    gate.release(1)
    assert not login.get()
    assert "remembered=[]" in repr(users)


def test_a_later_change_of_the_mapping_changes_no_users() -> None:
    hashes = {"alice": cheap(b"secret")}
    users = Users(hashes)
    hashes.clear()
    assert users.verify("alice", b"secret")
