"""The agreement is Noise, both ends or none know the keys, and nothing changed opens."""

from __future__ import annotations

import base64
import hashlib
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from hypothesis import given
from hypothesis import strategies as st
from nacl import bindings as sodium
from nacl.bindings import crypto_scalarmult_base
from nacl.secret import SecretBox
from noise.connection import Keypair, NoiseConnection

from gsocks import crypto
from gsocks.crypto import (
    EPHEMERAL_SIZE,
    FEATURES,
    HELLO_HEAD_SIZE,
    HINT_SIZE,
    KEY_SIZE,
    LOWEST_VERSION,
    REPLY_HEAD_SIZE,
    SALT_SIZE,
    VERSION,
    Area,
    Cipher,
    Feature,
    Hello,
    Initiator,
    Key,
    KeyRing,
    Responder,
    Session,
    agreed_version,
    cipher_named,
    fast_ciphers,
    preferred,
)
from gsocks.errors import ConfigError, ProtocolViolation, Tampered
from tests.support import other_end

NAME = b"Noise_NNpsk0_25519_ChaChaPoly_BLAKE2b"
KEY = Key(bytes(range(32)))
TIME_MS = 1_767_225_600_000
BOTH = Cipher.SECRETBOX | Cipher.AEGIS256


def seeded(label: str, number: int) -> bytes:
    """32 bytes, the same each time."""
    return hashlib.sha256(f"{label} {number}".encode()).digest()


CLIENTS = [seeded("client", n) for n in range(150)]
SERVERS = [seeded("server", n) for n in range(150)]
# the padding's length is a hash of the salt; among these are the shortest and the longest
HELLO_SALTS = [seeded("hello salt", n)[:SALT_SIZE] for n in range(150)]
REPLY_SALTS = [seeded("reply salt", n)[:SALT_SIZE] for n in range(150)]

# every X25519 public key that makes the shared secret zero, whatever the private key
SMALL_ORDER = [
    bytes(32),
    (1).to_bytes(32, "little"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    (2**255 - 20).to_bytes(32, "little"),
    (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


def split(hello: bytes) -> tuple[bytes, bytes]:
    return hello[:HELLO_HEAD_SIZE], hello[HELLO_HEAD_SIZE:]


def client(private: bytes = CLIENTS[0], offered: Cipher = BOTH) -> Initiator:
    """A client's part, the same each time."""
    return Initiator(KEY, offered, private, HELLO_SALTS[0])


def public_in(head: bytes, key: Key = KEY) -> bytes:
    """The public key of a hello, unmasked as the document says."""
    shape = other_end.hello_shape(key.raw(), head[:SALT_SIZE])
    return other_end.xor(head[SALT_SIZE + HINT_SIZE : HELLO_HEAD_SIZE], shape.mask)


def public_of(reply: bytes) -> bytes:
    """The same of a reply."""
    mask = other_end.reply_shape(KEY.raw(), reply[:SALT_SIZE])[1]
    return other_end.xor(reply[SALT_SIZE:REPLY_HEAD_SIZE], mask)


def head_of_hello(public: bytes, salt: bytes = HELLO_SALTS[0]) -> tuple[bytes, int]:
    """What stands in front of the payload, and how long the padding is."""
    shape = other_end.hello_shape(KEY.raw(), salt)
    return salt + shape.hint + other_end.xor(public, shape.mask), shape.padding


def head_of_reply(public: bytes, salt: bytes = REPLY_SALTS[0]) -> tuple[bytes, int]:
    """The same of a reply."""
    padding, mask = other_end.reply_shape(KEY.raw(), salt)
    return salt + other_end.xor(public, mask), padding


def responder_for(
    hello: bytes,
    key: Key = KEY,
    private: bytes | None = None,
    salt: bytes = REPLY_SALTS[0],
) -> Responder:
    """The server's part, as the hint points to it."""
    (found,) = KeyRing({"default": key}).candidates(hello[:HELLO_HEAD_SIZE])
    padding = other_end.hello_shape(key.raw(), hello[:SALT_SIZE]).padding
    made = Responder("default", key, public_in(hello, key), padding, private, salt)
    assert made.rest == found.rest
    return made


def finish(initiator: Initiator, reply: bytes) -> Session:
    return initiator.finish(reply[:REPLY_HEAD_SIZE], reply[REPLY_HEAD_SIZE:])


def agreed(cipher: Cipher) -> tuple[Session, Session]:
    """The client's session and the server's; the same keys each time."""
    initiator = client()
    hello = initiator.hello(TIME_MS)
    responder = responder_for(hello, private=SERVERS[0])
    responder.read(split(hello)[1])
    reply, far = responder.reply(cipher)
    return finish(initiator, reply), far


def one_bit_changed(data: bytes) -> Iterator[bytes]:
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            yield bytes(changed)


# --- against an independent implementation of Noise -------------------------------------------


def noiseprotocol(*, initiator: bool, private: bytes, prologue: bytes = b"gsocks/2") -> Any:
    end = NoiseConnection.from_name(NAME)
    end.set_psks(KEY.raw())
    end.set_prologue(prologue)
    (end.set_as_initiator if initiator else end.set_as_responder)()
    end.set_keypair_from_private_bytes(Keypair.EPHEMERAL, private)
    end.start_handshake()
    return end


def assert_same_keys(session: Session, theirs: Any) -> None:
    """Both directions: what one seals, a SecretBox with the other's raw key opens."""
    sending = theirs.noise_protocol.cipher_state_encrypt
    receiving = theirs.noise_protocol.cipher_state_decrypt
    assert sending.k != receiving.k
    nonce = bytes(24)
    assert SecretBox(receiving.k).decrypt(session.seal(b"ours"), nonce) == b"ours"
    assert session.open(SecretBox(sending.k).encrypt(b"theirs", nonce).ciphertext) == b"theirs"


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
def test_we_initiate_and_an_independent_noise_responds() -> None:
    lengths = set()
    for private, their_private, salt, their_salt in zip(
        CLIENTS, SERVERS, HELLO_SALTS, REPLY_SALTS, strict=True
    ):
        initiator = Initiator(KEY, BOTH, private, salt)
        hello = initiator.hello(TIME_MS)
        theirs = noiseprotocol(initiator=False, private=their_private)
        said = bytes(theirs.read_message(public_in(hello) + split(hello)[1]))
        assert said[:11] == TIME_MS.to_bytes(8, "big") + bytes((VERSION, BOTH, FEATURES))
        assert said[11:] == bytes(len(hello) - 16 - 4 - 32 - 11 - 16)
        head, padding = head_of_reply(crypto_scalarmult_base(their_private), their_salt)
        reply = bytes(theirs.write_message(bytes((VERSION, 0x01, 0)) + bytes(padding)))
        rest = reply[EPHEMERAL_SIZE:]
        assert initiator.reply_rest(head) == len(rest)
        session = initiator.finish(head, rest)
        assert session.cipher is Cipher.SECRETBOX
        assert_same_keys(session, theirs)
        lengths.add((len(said) - 11, padding))
    hello_lengths, reply_lengths = (set(each) for each in zip(*lengths, strict=True))
    for seen in (hello_lengths, reply_lengths):
        assert {0, 255} <= seen
        assert len(seen) > 80  # of 150 at random among 256


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
def test_an_independent_noise_initiates_and_we_respond() -> None:
    for private, our_private, salt, our_salt in zip(
        CLIENTS, SERVERS, HELLO_SALTS, REPLY_SALTS, strict=True
    ):
        theirs = noiseprotocol(initiator=True, private=private)
        public = crypto_scalarmult_base(private)
        head, padding = head_of_hello(public, salt)
        payload = TIME_MS.to_bytes(8, "big") + bytes((VERSION, 0x01, 0)) + bytes(padding)
        rest = bytes(theirs.write_message(payload))[EPHEMERAL_SIZE:]
        responder = responder_for(head, private=our_private, salt=our_salt)
        assert responder.rest == len(rest)
        said = responder.read(rest)
        assert said == Hello(TIME_MS, VERSION, Cipher.SECRETBOX, Feature.NONE, public)
        reply, session = responder.reply(Cipher.SECRETBOX)
        answer = bytes(theirs.read_message(public_of(reply) + reply[REPLY_HEAD_SIZE:]))
        expected, _ = other_end.reply_shape(KEY.raw(), our_salt)
        assert answer == bytes((VERSION, 0x01, 0)) + bytes(expected)
        assert_same_keys(session, theirs)


OTHER_PROLOGUE = b"gsocks/9"


@pytest.mark.filterwarnings("ignore:One of ephemeral keypairs is already set")
def test_an_end_of_another_prologue_is_not_understood_in_either_role() -> None:
    head, padding = head_of_hello(crypto_scalarmult_base(CLIENTS[0]))
    theirs = noiseprotocol(initiator=True, private=CLIENTS[0], prologue=OTHER_PROLOGUE)
    rest = bytes(theirs.write_message(bytes(11 + padding)))[EPHEMERAL_SIZE:]
    with pytest.raises(Tampered):
        responder_for(head).read(rest)
    hello = client().hello(TIME_MS)
    answering = noiseprotocol(initiator=False, private=SERVERS[0], prologue=OTHER_PROLOGUE)
    with pytest.raises(InvalidTag):
        answering.read_message(public_in(hello) + split(hello)[1])


def test_a_server_can_know_two_prologues() -> None:
    old_and_new = KeyRing({"default": KEY}, (OTHER_PROLOGUE, crypto.PROLOGUE))
    for prologue in (OTHER_PROLOGUE, crypto.PROLOGUE):
        initiator = Initiator(KEY, BOTH, prologue=prologue)
        head, rest = split(initiator.hello(TIME_MS))
        (responder,) = old_and_new.candidates(head)
        assert responder.read(rest).time_ms == TIME_MS
        reply, far = responder.reply(Cipher.SECRETBOX)
        assert far.open(finish(initiator, reply).seal(b"x")) == b"x"
    assert KeyRing({"default": KEY}).candidates(split(initiator_of_other())[0]) == []


def initiator_of_other() -> bytes:
    return Initiator(KEY, BOTH, prologue=OTHER_PROLOGUE).hello(TIME_MS)


@pytest.mark.parametrize(
    ("offered", "spoken"),
    [(0, LOWEST_VERSION), (VERSION, VERSION), (VERSION + 1, VERSION), (255, VERSION)],
)
def test_the_highest_version_of_both_is_spoken_or_the_lowest_of_the_server(
    offered: int, spoken: int
) -> None:
    assert agreed_version(offered) == spoken
    hello = other_end.Client(KEY.raw(), CLIENTS[0]).hello(TIME_MS, 0x01, version=offered)
    responder = responder_for(hello)
    assert responder.read(split(hello)[1]).version == offered
    reply, _ = responder.reply(Cipher.SECRETBOX, agreed_version(offered))
    answering = other_end.Client(KEY.raw(), CLIENTS[0], hello[:SALT_SIZE])
    answering.hello(TIME_MS, 0x01, version=offered)
    assert answering.read_reply(other_end.Taker(reply)).version == spoken


def replied(payload: bytes, offered: Cipher = BOTH) -> Session:
    """What a client makes of a reply with this payload and the right padding."""
    initiator = client(offered=offered)
    server_end = other_end.Server(KEY.raw(), SERVERS[0])
    server_end.read_hello(other_end.Taker(initiator.hello(TIME_MS)))
    public = crypto_scalarmult_base(SERVERS[0])
    server_end.noise.e(public)
    server_end.noise.ee(SERVERS[0], server_end.client_public)
    head, padding = head_of_reply(public)
    return initiator.finish(head, server_end.noise.seal(payload + bytes(padding)))


def test_a_version_that_the_client_does_not_speak_is_told_in_one_line() -> None:
    for version in {*range(256)} - {VERSION}:
        told = f"the server speaks version {version} of the protocol, and this end 2: the older"
        with pytest.raises(ProtocolViolation, match=told):
            replied(bytes((version, 0x01, 0)))
    assert replied(bytes((VERSION, 0x01, 0))).cipher is Cipher.SECRETBOX


def test_features_that_were_not_offered_are_refused() -> None:
    for features in set(range(1, 256)) - {FEATURES}:
        with pytest.raises(Tampered, match=r"not offered"):
            replied(bytes((VERSION, 0x01, features)))


def test_offered_features_are_chosen_as_far_as_they_are_known() -> None:
    for features in range(256):
        theirs = other_end.Client(KEY.raw(), CLIENTS[0])
        hello = theirs.hello(TIME_MS, 0x01, features=features)
        responder = responder_for(hello)
        said = responder.read(split(hello)[1])
        reply, session = responder.reply(Cipher.SECRETBOX, features=said.features)
        chosen = theirs.read_reply(other_end.Taker(reply)).features
        assert chosen == session.features == features & other_end.LOOK_UPS


def test_the_features_of_a_session_are_those_of_the_reply() -> None:
    assert replied(bytes((VERSION, 0x01, 0))).features is Feature.NONE
    assert replied(bytes((VERSION, 0x01, 1))).features is Feature.LOOK_UPS


def test_nothing_that_is_not_sealed_can_be_told_from_random_bytes() -> None:
    """The highest bit of a public key is never set; of what is sent, it is in every second one."""
    highest = {"hello": 0, "reply": 0}
    for _ in range(1000):
        initiator = Initiator(KEY, Cipher.SECRETBOX)
        hello = initiator.hello(TIME_MS)
        assert not public_in(hello)[31] & 0x80
        highest["hello"] += hello[HELLO_HEAD_SIZE - 1] >> 7
        (responder,) = KeyRing({"default": KEY}).candidates(hello[:HELLO_HEAD_SIZE])
        responder.read(split(hello)[1])
        reply, _ = responder.reply(Cipher.SECRETBOX)
        assert not public_of(reply)[31] & 0x80
        highest["reply"] += reply[REPLY_HEAD_SIZE - 1] >> 7
    # less than one in 10^9 of the fair coins would fall outside
    assert all(400 < each < 600 for each in highest.values()), highest


def test_every_agreement_has_keys_of_its_own() -> None:
    hellos = [Initiator(KEY, BOTH).hello(TIME_MS) for _ in range(20)]
    assert len({public_in(hello) for hello in hellos}) == 20
    assert len({hello[:SALT_SIZE] for hello in hellos}) == 20
    replies, boxes = set(), set()
    for _ in range(20):
        initiator = client()
        hello = initiator.hello(TIME_MS)
        responder = responder_for(hello)
        responder.read(split(hello)[1])
        reply, session = responder.reply(Cipher.SECRETBOX)
        replies.add(public_of(reply))
        boxes.add(session.seal(b"the same"))
    assert (len(replies), len(boxes)) == (20, 20)


# --- changed and cut messages -----------------------------------------------------------------


def test_a_hello_with_any_bit_changed_belongs_to_no_key() -> None:
    hello = client().hello(TIME_MS)
    ring = KeyRing({"default": KEY})
    head, rest = split(hello)
    hinted = SALT_SIZE + HINT_SIZE
    for changed in one_bit_changed(head[:hinted]):
        assert ring.candidates(changed + head[hinted:]) == []
    # the highest bit of the public key too, which X25519 itself ignores
    for changed in one_bit_changed(head[hinted:]):
        with pytest.raises(Tampered):
            responder_for(head[:hinted] + changed).read(rest)
    for changed in one_bit_changed(rest):
        with pytest.raises(Tampered):
            responder_for(head).read(changed)
    assert responder_for(head).read(rest).time_ms == TIME_MS


def test_a_reply_with_any_bit_changed_is_refused() -> None:
    hello = client().hello(TIME_MS)
    responder = responder_for(hello, private=SERVERS[0])
    responder.read(split(hello)[1])
    reply, _ = responder.reply(Cipher.SECRETBOX)

    def receive(data: bytes) -> Session:
        initiator = client()
        initiator.hello(TIME_MS)
        return finish(initiator, data)

    for changed in one_bit_changed(reply):
        with pytest.raises(Tampered):
            receive(changed)
    for length in range(REPLY_HEAD_SIZE, len(reply)):
        with pytest.raises(Tampered):
            receive(reply[:length])
    with pytest.raises(Tampered):
        receive(reply + b"\0")
    assert receive(reply).cipher is Cipher.SECRETBOX


def test_a_hello_that_is_cut_or_lengthened_is_refused() -> None:
    hello = client().hello(TIME_MS)
    head, rest = split(hello)
    for length in range(SALT_SIZE + HINT_SIZE):
        assert KeyRing({"default": KEY}).candidates(hello[:length]) == []
    for length in range(len(rest)):
        with pytest.raises(Tampered):
            responder_for(head).read(rest[:length])
    with pytest.raises(Tampered):
        responder_for(head).read(rest + b"\0")


def test_a_hello_is_refused_under_another_key_and_so_is_a_reply() -> None:
    other = Key(seeded("other key", 0))
    initiator = client()
    head, rest = split(initiator.hello(TIME_MS))
    assert KeyRing({"default": other}).candidates(head) == []
    with pytest.raises(Tampered):
        Responder("default", other, public_in(head), len(rest) - 11 - 16).read(rest)
    # a server that only pretends: it knows the public keys, and answers under a key of its own
    noise = other_end.Noise(other.raw())
    public = crypto_scalarmult_base(SERVERS[0])
    noise.e(public_in(head))
    noise.mix_hash(rest)
    noise.e(public)
    noise.ee(SERVERS[0], public_in(head))
    front, padding = head_of_reply(public)
    with pytest.raises(Tampered):
        initiator.finish(front, noise.seal(bytes((VERSION, 0x01, 0)) + bytes(padding)))


@pytest.mark.parametrize("point", SMALL_ORDER, ids=bytes.hex)
@pytest.mark.parametrize("highest_bit", [0, 0x80])
def test_a_public_key_of_small_order_is_refused_even_from_who_knows_the_key(
    point: bytes, highest_bit: int
) -> None:
    point = point[:31] + bytes((point[31] | highest_bit,))
    # a server that answers with it: all of the reply is right, the shared secret is zero
    initiator = client()
    hello = initiator.hello(TIME_MS)
    noise = other_end.Server(KEY.raw(), bytes(32))
    noise.read_hello(other_end.Taker(hello))
    noise.noise.e(point)
    noise.noise.mix_key(bytes(32))
    front, padding = head_of_reply(point)
    with pytest.raises(Tampered):
        initiator.finish(front, noise.noise.seal(bytes((VERSION, 0x01, 0)) + bytes(padding)))
    # a client that greets with it
    front, padding = head_of_hello(point)
    greeting = other_end.Noise(KEY.raw())
    greeting.e(point)
    responder = responder_for(front)
    responder.read(greeting.seal(bytes(8) + bytes((VERSION, 0x01, 0)) + bytes(padding)))
    with pytest.raises(Tampered):
        responder.reply(Cipher.SECRETBOX)


# --- many keys --------------------------------------------------------------------------------


class Work:
    """Counts what costs something."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        for name in (
            "crypto_scalarmult",
            "crypto_scalarmult_base",
            "crypto_aead_chacha20poly1305_ietf_decrypt",
        ):
            self._count(monkeypatch, sodium, name)
        self._count(monkeypatch, crypto, "_hello_shape")
        self._count(monkeypatch, crypto, "Responder")

    def _count(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            self.done.append(name)
            return original(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    def take(self) -> list[str]:
        done, self.done = self.done, []
        return done


def test_the_right_one_of_a_thousand_keys_is_found_by_its_hint_and_the_others_cost_no_agreement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = {f"user {n}": Key(seeded("key", n)) for n in range(1000)}
    hellos = {
        n: Initiator(keys[f"user {n}"], BOTH, CLIENTS[n % 100]).hello(TIME_MS + n)
        for n in (0, 1, 499, 998, 999)
    }
    stranger = Initiator(Key(seeded("key", 1000)), BOTH).hello(TIME_MS)
    work = Work(monkeypatch)
    ring = KeyRing(keys)
    assert work.take() == ["_hello_shape"] * 1000  # once, when it is made
    for n, hello in hellos.items():
        head, rest = split(hello)
        (found,) = ring.candidates(head)
        assert (found.name, found.key, found.rest) == (f"user {n}", keys[f"user {n}"], len(rest))
        assert work.take() == ["Responder"]
        assert found.read(rest).time_ms == TIME_MS + n
        assert work.take() == ["crypto_aead_chacha20poly1305_ietf_decrypt"]
        found.reply(Cipher.SECRETBOX)
        assert sorted(work.take()) == ["crypto_scalarmult", "crypto_scalarmult_base"]
    assert ring.candidates(stranger[:HELLO_HEAD_SIZE]) == []
    assert work.take() == []


# Found by search: with the salt of seeded("hello salt", 0), these two keys have one hint.
COLLIDING = {"long": Key(seeded("key", 78003)), "short": Key(seeded("key", 58290))}


@pytest.mark.parametrize("order", [("long", "short"), ("short", "long")])
@pytest.mark.parametrize("sender", ["long", "short"])
def test_two_keys_with_the_same_hint_are_both_tried_the_shorter_hello_first(
    sender: str, order: tuple[str, str]
) -> None:
    ring = KeyRing({name: COLLIDING[name] for name in order})
    hello = Initiator(COLLIDING[sender], BOTH, salt=HELLO_SALTS[0]).hello(TIME_MS)
    head, rest = split(hello)
    found = ring.candidates(head)
    assert [each.name for each in found] == ["short", "long"]
    assert found[0].rest < found[1].rest
    opened = []
    for each in found:
        try:
            each.read(rest[: each.rest])
        except Tampered:
            continue
        opened.append(each.name)
    assert opened == [sender]


def test_a_ring_tells_the_key_of_a_name_and_shows_names_only() -> None:
    ring = KeyRing({"alice": KEY})
    assert ring.key("alice") == KEY
    assert ring.key("bob") is None
    assert repr(ring) == "<KeyRing: alice>"
    assert repr(KeyRing({})) == "<KeyRing: empty>"
    assert KeyRing({}).candidates(bytes(HELLO_HEAD_SIZE)) == []


# --- sealing ----------------------------------------------------------------------------------


ciphers = pytest.mark.parametrize("cipher", list(Cipher), ids=lambda cipher: cipher.name)


@ciphers
def test_what_one_end_seals_the_other_opens_in_both_directions(cipher: Cipher) -> None:
    near, far = agreed(cipher)
    assert near.cipher is far.cipher is cipher
    for number in range(600):  # the counter goes beyond one byte
        message = os.urandom(number)
        for one, other in ((near, far), (far, near)):
            sealed = one.seal(message)
            assert len(sealed) == len(message) + one.overhead
            assert other.open(sealed) == message


@ciphers
def test_the_same_message_is_sealed_differently_each_time_and_each_way(cipher: Cipher) -> None:
    near, far = agreed(cipher)
    sealed = [end.seal(b"the same") for end in (near, far) for _ in range(300)]
    assert len(set(sealed)) == 600


def test_the_nonce_is_a_little_endian_counter() -> None:
    near, _ = agreed(Cipher.SECRETBOX)
    server_end = other_end.Server(KEY.raw(), SERVERS[0])
    server_end.read_hello(other_end.Taker(client().hello(TIME_MS)))
    _, _, to_server = server_end.reply(other_end.SECRETBOX)
    box = SecretBox(to_server.key)
    for number in range(600):
        nonce = bytes((number & 0xFF, number >> 8)) + bytes(22)
        assert box.decrypt(near.seal(b"x"), nonce) == b"x"


@ciphers
def test_boxes_open_in_their_order_only(cipher: Cipher) -> None:
    near, _ = agreed(cipher)
    boxes = [near.seal(b"first"), near.seal(b"second"), near.seal(b"third")]

    def opens(*order: int) -> None:
        opener = agreed(cipher)[1]
        for number in order:
            opener.open(boxes[number])

    opens(0, 1, 2)
    for order in ((1,), (0, 2), (0, 0), (0, 1, 0), (0, 1, 1), (2, 1, 0)):
        with pytest.raises(Tampered):
            opens(*order)


@ciphers
def test_a_box_with_any_bit_changed_or_any_byte_missing_does_not_open(cipher: Cipher) -> None:
    sealed = agreed(cipher)[0].seal(b"message")
    opener = agreed(cipher)[1].open
    assert opener(sealed) == b"message"
    for changed in one_bit_changed(sealed):
        with pytest.raises(Tampered):
            agreed(cipher)[1].open(changed)
    for length in range(len(sealed)):
        with pytest.raises(Tampered):
            agreed(cipher)[1].open(sealed[:length])
    with pytest.raises(Tampered):
        agreed(cipher)[1].open(sealed + b"\0")


@ciphers
def test_a_box_sent_back_to_its_sender_does_not_open(cipher: Cipher) -> None:
    near, far = agreed(cipher)
    for end in (near, far):
        with pytest.raises(Tampered):
            end.open(end.seal(b"mirror"))


@ciphers
def test_buffers_take_turns_with_bytes_and_nothing_is_written_beyond_the_message(
    cipher: Cipher,
) -> None:
    near, far = agreed(cipher)
    for size in (0, 1, 1000, 65536):
        message, room, back = os.urandom(size), bytearray(70_000), bytearray(70_000)
        near.sealer.seal_into(memoryview(room)[7:], message)
        end = 7 + size + near.overhead
        assert not any(room[:7])
        assert not any(room[end:])
        far.opener.open_into(memoryview(back)[3:], memoryview(room)[7:end])
        assert back[3 : 3 + size] == message
        assert not any(back[:3])
        assert not any(back[3 + size :])
        assert far.open(near.seal(message)) == message


@ciphers
def test_a_buffer_without_room_is_refused_before_anything_is_written(cipher: Cipher) -> None:
    near, far = agreed(cipher)
    sealed = near.seal(b"message")
    for room in range(7 + near.overhead):
        with pytest.raises(ValueError, match="bytes for"):
            near.sealer.seal_into(bytearray(room), b"message")
    for room in range(7):
        with pytest.raises(ValueError, match="bytes for"):
            far.opener.open_into(bytearray(room), sealed)
    with pytest.raises(ValueError, match="bytes for"):
        far.opener.open_into(bytearray(100), sealed[: near.overhead - 1])
    # and none of it has counted as a message
    exact = bytearray(7)
    far.opener.open_into(exact, sealed)
    assert exact == b"message"
    assert far.open(near.seal(b"next")) == b"next"


@ciphers
@pytest.mark.parametrize("size", [0, 1, 2048, 2049, 65536])
def test_messages_are_sealed_and_opened_inside_of_areas(cipher: Cipher, size: int) -> None:
    near, far = agreed(cipher)
    sealed, opened = (Area(bytearray(70_000)) for _ in range(2))
    message = os.urandom(size)
    for plaintext in (message, memoryview(message)):
        end = near.sealer.seal_at(sealed, 7, plaintext)
        assert end == 7 + size + near.overhead
        assert not any(sealed.view[:7])
        assert not any(sealed.view[end:])
        opened.view[:] = bytes(opened.size)
        far.opener.open_at(opened, 3, sealed, 7, end - 7)
        assert opened.view[3 : 3 + size] == message
        assert not any(opened.view[:3])
        assert not any(opened.view[3 + size :])


@ciphers
def test_an_area_without_room_is_refused_before_anything_is_written(cipher: Cipher) -> None:
    near, far = agreed(cipher)
    message, overhead = b"message", near.overhead
    exact = Area(bytearray(7 + overhead))
    for start in (-1, 1, 1000):
        with pytest.raises(ValueError, match="bytes for"):
            near.sealer.seal_at(exact, start, message)
    assert near.sealer.seal_at(exact, 0, message) == exact.size
    opened = Area(bytearray(7))
    for to in (-1, 1, 1000):
        with pytest.raises(ValueError, match="bytes for"):
            far.opener.open_at(opened, to, exact, 0, exact.size)
    for start, length in (
        (0, overhead - 1),
        (1, exact.size),
        (-1, exact.size),
        (0, exact.size + 1),
    ):
        with pytest.raises(ValueError, match="bytes"):
            far.opener.open_at(opened, 0, exact, start, length)
    assert not any(opened.view)
    # and none of it has counted as a message
    far.opener.open_at(opened, 0, exact, 0, exact.size)
    assert opened.view == message
    exact.view[0] ^= 1
    with pytest.raises(Tampered):
        far.opener.open_at(opened, 0, exact, 0, exact.size)


def test_a_box_of_one_cipher_does_not_open_with_the_other() -> None:
    for sealing, opening in (tuple(Cipher), tuple(reversed(Cipher))):
        with pytest.raises(Tampered):
            agreed(opening)[1].open(agreed(sealing)[0].seal(b"message" * 10))


# --- which cipher -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "supported", "chosen"),
    [
        (Cipher.SECRETBOX, Cipher.SECRETBOX, Cipher.SECRETBOX),
        (Cipher.SECRETBOX, BOTH, Cipher.SECRETBOX),
        (BOTH, Cipher.SECRETBOX, Cipher.SECRETBOX),
        (BOTH, BOTH, Cipher.AEGIS256),
        (Cipher.AEGIS256, BOTH, Cipher.AEGIS256),
        (Cipher.AEGIS256, Cipher.SECRETBOX, None),
        (Cipher(0), BOTH, None),
    ],
)
def test_the_fastest_cipher_that_both_ends_have_is_chosen(
    offered: Cipher, supported: Cipher, chosen: Cipher | None
) -> None:
    initiator = client(offered=offered)
    hello = initiator.hello(TIME_MS)
    responder = responder_for(hello)
    assert responder.read(split(hello)[1]).offered == offered
    choice = preferred(offered & supported)
    assert choice is chosen
    if choice is not None:
        reply, far = responder.reply(choice)
        near = finish(initiator, reply)
        assert near.cipher is far.cipher is chosen
        assert far.open(near.seal(b"x")) == b"x"


def test_offered_unknown_bits_are_ignored() -> None:
    for offered in range(256):
        hello = other_end.Client(KEY.raw(), CLIENTS[0]).hello(TIME_MS, offered)
        assert responder_for(hello).read(split(hello)[1]).offered == Cipher(offered & 0x03)


@pytest.mark.parametrize("offered", [Cipher.SECRETBOX, Cipher.AEGIS256, BOTH])
def test_a_choice_that_was_not_offered_or_is_not_one_cipher_is_refused(offered: Cipher) -> None:
    for chosen in range(256):
        payload = bytes((VERSION, chosen, 0))
        if chosen in (Cipher.SECRETBOX, Cipher.AEGIS256) and chosen & offered:
            assert replied(payload, offered).cipher == chosen
        else:
            with pytest.raises(Tampered, match=r"not offered"):
                replied(payload, offered)


def test_ciphers_are_named_as_in_the_config() -> None:
    assert cipher_named("secretbox") is Cipher.SECRETBOX
    assert cipher_named("AEGIS256") is Cipher.AEGIS256
    with pytest.raises(ConfigError, match=r"'rot13' is not known \(.*secretbox, aegis256\)"):
        cipher_named("rot13")


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("flags\t\t: fpu sse2 aes avx\n", BOTH),
        ("Features\t: fp asimd aes pmull\n", BOTH),
        ("flags\t\t: fpu sse2 avx vaes_but_not_the_word\n", Cipher.SECRETBOX),
        ("", Cipher.SECRETBOX),
    ],
)
def test_aegis_is_fast_only_with_the_processors_help(
    cpuinfo: str, expected: Cipher, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    monkeypatch.setattr(crypto, "open", lambda name: file.open(), raising=False)
    assert fast_ciphers() == expected


def test_where_nothing_is_known_of_the_processor_aegis_is_not_fast(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(crypto, "open", lambda name: (tmp_path / "none").open(), raising=False)
    assert fast_ciphers() == Cipher.SECRETBOX


# --- keys -------------------------------------------------------------------------------------


RAW = seeded("a key with both odd characters", 5)


@pytest.mark.parametrize("raw", [RAW, bytes(32), b"\xff" * 32, b"\xfb\xef\xbe" * 10 + b"\xff\xff"])
def test_a_key_is_read_from_base64_of_every_form(raw: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        padded = encode(raw).decode()
        bare = padded.rstrip("=")
        for text in (padded, bare, f"  {padded}\n", f"\t{bare}\r\n"):
            assert Key.parse(text).raw() == raw


@given(st.binary(min_size=32, max_size=32))
def test_a_keys_text_is_the_key_and_is_fit_for_a_url(raw: bytes) -> None:
    text = Key(raw).text()
    assert Key.parse(text) == Key(raw)
    assert len(text) == 43
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def secrets_of(raw: bytes) -> list[str]:
    """How the key, or a part of it, could stand in a text."""
    forms = (base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(), raw.hex())
    return [*(form[at : at + 8] for form in forms for at in range(len(form) - 8)), repr(raw)[2:10]]


def assert_hidden(shown: str, raw: bytes) -> None:
    assert not any(secret in shown for secret in secrets_of(raw))


@pytest.mark.parametrize("size", [0, 1, 31, 33, 64])
def test_a_key_of_another_size_is_refused_and_not_repeated(size: int) -> None:
    raw = (RAW * 2)[:size]
    makers: list[Callable[[], Key]] = [
        lambda: Key(raw),
        lambda: Key.parse(base64.b64encode(raw).decode()),
    ]
    for make in makers:
        with pytest.raises(ConfigError, match=rf"^a key has 32 bytes, this one has {size}$"):
            make()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "!" + text[1:],
        lambda text: text[:20] + " " + text[20:],
        lambda text: text[:20] + "\n" + text[20:],
        lambda text: text[:-1] + "ü",
        lambda text: text[:-2],
        lambda text: text[:20] + "=" + text[20:],
        lambda text: f"key: {text}",
    ],
)
def test_what_is_not_base64_is_refused_and_not_repeated(spoil: Any) -> None:
    text = spoil(Key(RAW).text())
    with pytest.raises(ConfigError) as caught:
        Key.parse(text)
    report = "".join(traceback.format_exception(caught.value))
    shown = report.split("ConfigError")[-1]
    assert_hidden(shown, RAW)
    assert caught.value.__suppress_context__
    assert_hidden(str(caught.value.__context__), RAW)


def test_a_key_is_shown_by_nothing_but_its_text() -> None:
    key = Key(RAW)
    initiator = Initiator(key, BOTH, CLIENTS[0])
    hello = initiator.hello(TIME_MS)
    responder = responder_for(hello, key, SERVERS[0])
    said = responder.read(split(hello)[1])
    reply, far = responder.reply(Cipher.SECRETBOX)
    near = finish(initiator, reply)
    holders = (key, initiator, responder, said, far, near, KeyRing({"a": key}), [key], {"k": key})
    for holder in holders:
        for shown in (repr(holder), str(holder), f"{holder}", "%s %r" % (holder, holder)):  # noqa: UP031
            for secret in (RAW, CLIENTS[0], SERVERS[0]):
                assert_hidden(shown, secret)
    assert repr(key) == str(key) == "<Key: hidden>"
    assert key.text() == base64.urlsafe_b64encode(RAW).decode().rstrip("=")
    assert not hasattr(key, "__dict__")


def test_generated_keys_are_new_each_time() -> None:
    keys = {Key.generate() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(key.raw()) == KEY_SIZE for key in keys)


def test_keys_are_equal_if_their_bytes_are() -> None:
    assert Key(RAW) == Key(bytes(RAW))
    assert hash(Key(RAW)) == hash(Key(bytes(RAW)))
    assert Key(RAW) != KEY
    assert Key(RAW) != RAW
    assert {Key(RAW): "here"}[Key(RAW)] == "here"


# --- records that are kept where others can read them -------------------------------------------


def test_a_record_opens_by_its_key_and_its_name_alone() -> None:
    key = crypto.Key.generate()
    box = crypto.RecordBox(key)
    sealed = box.seal(b"secret", "a")
    assert crypto.RecordBox(crypto.Key(key.raw())).open(sealed, "a") == b"secret"
    assert box.seal(b"secret", "a") != sealed
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    others = [(crypto.RecordBox(crypto.Key.generate()), sealed, "a")]
    others += [(box, sealed, "b"), (box, changed, "a"), (box, b"", "a"), (box, sealed[:30], "a")]
    for opener, text, name in others:
        with pytest.raises(Tampered):
            opener.open(text, name)


def test_a_record_is_sealed_as_libsodium_does_by_a_key_of_its_own() -> None:
    raw = bytes(range(32))
    sealed = crypto.RecordBox(crypto.Key(raw)).seal(b"text", "a name")
    own = hashlib.blake2b(b"a name", key=raw, digest_size=32, person=b"gsocks record").digest()
    assert SecretBox(own).decrypt(sealed) == b"text"


def test_the_name_of_a_secret_thing_shows_nothing_of_it() -> None:
    box = crypto.RecordBox(crypto.Key(bytes(range(32))))
    assert box.name(b"https://user:secret@lists.example/") == box.name(
        b"https://user:secret@lists.example/"
    )
    assert box.name(b"a") != crypto.RecordBox(crypto.Key(bytes(32))).name(b"a")
    assert "hidden" in repr(box)
