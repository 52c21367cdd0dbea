"""What a server replies to a hello that proves the key."""

from __future__ import annotations

import os

from tests.conformance.cases import Cases, Failed
from tests.conformance.trial import Trial, now_ms
from tests.conformance.wire import Tunnel
from tests.support import other_end
from tests.support.other_end import AEGIS256, LOOK_UPS, SECRETBOX, VERSION, Agreed

agreement = Cases[Trial]("agreement")


def _expect(expected: str, seen: object, holds: bool) -> None:
    if not holds:
        raise Failed(expected, str(seen))


def _agreed(trial: Trial, offered: int = SECRETBOX, **offer: int) -> Agreed:
    client = trial.client()
    connection, agreed = trial.agree(client, client.hello(now_ms(), offered, **offer))
    Tunnel(connection, agreed.sealing, agreed.opening).expect_alive()
    return agreed


@agreement
def a_hello_that_offers_secretbox_alone_is_replied_to_with_secretbox(trial: Trial) -> None:
    agreed = _agreed(trial)
    _expect("cipher 0x01", f"{agreed.sealing.cipher:#04x}", agreed.sealing.cipher == SECRETBOX)
    _expect(f"version {VERSION}", agreed.version, agreed.version == VERSION)
    _expect("features 0", agreed.features, agreed.features == 0)


@agreement
def of_both_ciphers_one_is_chosen(trial: Trial) -> None:
    cipher = _agreed(trial, SECRETBOX | AEGIS256).sealing.cipher
    _expect("cipher 0x01 or 0x02", f"{cipher:#04x}", cipher in (SECRETBOX, AEGIS256))


@agreement
def offered_ciphers_that_are_unknown_are_ignored(trial: Trial) -> None:
    cipher = _agreed(trial, 0xFD).sealing.cipher
    _expect("cipher 0x01", f"{cipher:#04x}", cipher == SECRETBOX)


@agreement
def offered_features_that_are_unknown_are_not_chosen(trial: Trial) -> None:
    features = _agreed(trial, features=0xFF & ~LOOK_UPS).features
    _expect("features 0", f"{features:#04x}", features == 0)


@agreement
def of_the_offered_features_the_known_ones_alone_are_chosen(trial: Trial) -> None:
    features = _agreed(trial, features=0xFF).features
    _expect("features 0 or 0x01", f"{features:#04x}", features & ~LOOK_UPS == 0)


@agreement.each(by_one=VERSION + 1, by_far=255)
def a_higher_version_is_replied_to_with_one_that_both_speak(trial: Trial, version: int) -> None:
    replied = _agreed(trial, version=version).version
    _expect(f"version {VERSION} to {version}", replied, VERSION <= replied <= version)


@agreement.each(by_one=VERSION - 1, by_all=0)
def a_version_that_is_too_low_is_told_in_one_round_trip_and_the_server_closes(
    trial: Trial, version: int
) -> None:
    trial.target.silence.begin()
    client = trial.client()
    connection, agreed = trial.agree(client, client.hello(now_ms(), SECRETBOX, version))
    _expect(f"version {VERSION} or higher", agreed.version, agreed.version >= VERSION)
    connection.expect_end("EOF", "RST")
    age, seconds = connection.age, trial.target.silence.seconds()
    _expect(f"the end before {seconds:.1f} s", f"it after {age:.1f} s", age < seconds / 2)


@agreement.each(smallest=0, largest=255)
def a_hello_may_have_the_padding_that_is_the(trial: Trial, padding: int) -> None:
    salt = os.urandom(16)
    while other_end.hello_shape(trial.key, salt).padding != padding:
        salt = os.urandom(16)
    client = trial.client(salt=salt)
    connection, agreed = trial.agree(client, client.hello(now_ms(), SECRETBOX))
    Tunnel(connection, agreed.sealing, agreed.opening).expect_alive()


@agreement
def the_content_of_the_padding_is_ignored(trial: Trial) -> None:
    client = trial.client()
    connection, agreed = trial.agree(client, trial.crafted_hello(client, filler=0xA5))
    Tunnel(connection, agreed.sealing, agreed.opening).expect_alive()


@agreement.each(of_one_byte=1, of_51_bytes=51)
def a_hello_may_come_in_pieces(trial: Trial, size: int) -> None:
    client = trial.client()
    connection, agreed = trial.agree(client, client.hello(now_ms(), SECRETBOX), size)
    Tunnel(connection, agreed.sealing, agreed.opening).expect_alive()


@agreement
def a_clock_may_be_25_seconds_ahead(trial: Trial) -> None:
    client = trial.client()
    connection, agreed = trial.agree(client, client.hello(now_ms() + 25_000, SECRETBOX))
    Tunnel(connection, agreed.sealing, agreed.opening).expect_alive()


@agreement
def each_reply_has_a_salt_and_a_public_key_of_its_own(trial: Trial) -> None:
    salts, keys = set(), set()
    for _ in range(4):
        client = trial.client()
        connection = trial.connect()
        connection.send(client.hello(now_ms(), SECRETBOX))
        salt, masked = connection.exactly(16), connection.exactly(32)
        salts.add(salt)
        keys.add(other_end.xor(masked, other_end.reply_shape(trial.key, salt)[1]))
    _expect("4 salts and 4 keys", f"{len(salts)} and {len(keys)}", len(salts) == len(keys) == 4)


@agreement
def aegis256_alone_is_chosen_or_is_no_cipher_in_common(trial: Trial) -> None:
    if _agreed(trial, SECRETBOX | AEGIS256).sealing.cipher == AEGIS256:
        cipher = _agreed(trial, AEGIS256).sealing.cipher
        _expect("cipher 0x02", f"{cipher:#04x}", cipher == AEGIS256)
    else:
        trial.expect_silence(trial.hello(offered=AEGIS256))


# --- nothing else is answered ---------------------------------------------------------------------

silence = Cases[Trial]("silence")


def _parts(hello: bytes) -> dict[str, int]:
    return {
        "salt": 0,
        "hint": 16,
        "public key": 20 + 7,
        "highest bit of the public key": 20 + 31,
        "sealed time": 52,
        "tag": len(hello) - 1,
    }


@silence
def a_client_that_says_nothing_sees_fin_in_the_end(trial: Trial) -> None:
    trial.target.silence.seconds()


@silence.each(
    **{
        "1 random byte": 1,
        "51 random bytes": 51,
        "52 random bytes": 52,
        "400 random bytes": 400,
        "100,000 random bytes": 100_000,
    }
)
def silence_meets(trial: Trial, count: int) -> None:
    trial.expect_silence(os.urandom(count))


@silence.each(
    HTTP=b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
    SOCKS=b"\x05\x01\x00",
    TLS=bytes.fromhex("16030100f8010000f40303") + bytes(242),
)
def silence_meets_a_client_that_speaks(trial: Trial, said: bytes) -> None:
    trial.expect_silence(said)


@silence
def silence_meets_the_hello_of_another_key(trial: Trial) -> None:
    trial.expect_silence(trial.client(os.urandom(32)).hello(now_ms(), SECRETBOX))


@silence
def silence_meets_the_hello_of_another_prologue(trial: Trial) -> None:
    trial.expect_silence(trial.crafted_hello(trial.client(), prologue=b"gsocks/1"))


@silence.each(
    **{part.replace(" ", "_"): part for part in _parts(bytes(79))},
)
def silence_meets_a_hello_with_a_flipped_bit_in_its(trial: Trial, part: str) -> None:
    hello = bytearray(trial.hello())
    hello[_parts(bytes(hello))[part]] ^= 0x80
    trial.expect_silence(bytes(hello))


@silence.each(its_last_byte=1, its_tag=16, all_but_its_first_52=None)
def silence_meets_a_hello_without(trial: Trial, missing: int | None) -> None:
    hello = trial.hello()
    trial.expect_silence(hello[:52] if missing is None else hello[:-missing])


@silence
def silence_meets_a_hello_that_is_replayed(trial: Trial) -> None:
    client = trial.client()
    hello = client.hello(now_ms(), SECRETBOX)
    trial.agree(client, hello)
    trial.expect_silence(hello)


@silence
def silence_meets_a_hello_that_is_replayed_while_its_tunnel_lives(trial: Trial) -> None:
    client = trial.client()
    hello = client.hello(now_ms(), SECRETBOX)
    connection, agreed = trial.agree(client, hello)
    trial.expect_silence(hello + os.urandom(100))
    tunnel = Tunnel(connection, agreed.sealing, agreed.opening)
    tunnel.expect_alive()


@silence.each(ahead=40_000, behind=-40_000, behind_by_50_years=-50 * 365 * 86_400_000)
def silence_meets_a_clock_that_is(trial: Trial, ahead_ms: int) -> None:
    trial.expect_silence(trial.hello(ahead_ms))


@silence.each(no_cipher=0x00, unknown_ciphers_only=0xF8)
def silence_meets_a_hello_that_offers(trial: Trial, offered: int) -> None:
    trial.expect_silence(trial.hello(offered=offered))


@silence.each(zero=bytes(32), one=b"\x01" + bytes(31), minus_one=b"\xec" + b"\xff" * 30 + b"\x7f")
def silence_meets_a_public_key_of_small_order(trial: Trial, public: bytes) -> None:
    trial.expect_silence(trial.crafted_hello(trial.client(), public=public))


@silence
def silence_meets_a_stranger_that_ends_its_direction(trial: Trial) -> None:
    trial.expect_silence(os.urandom(100), ends=True)


@silence
def silence_meets_a_stranger_that_ends_its_direction_at_once(trial: Trial) -> None:
    trial.expect_silence(b"", ends=True)


@silence
def a_stranger_that_is_still_sending_sees_fin_and_no_reset_before_it(trial: Trial) -> None:
    trial.expect_silence(os.urandom(1000), talks_on=True)
