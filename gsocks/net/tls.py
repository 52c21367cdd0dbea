"""TLS over any Stream, as a Stream.

The TLS engine works on memory only: what it wants to send and receive goes through two buffers,
and the stream below does the waiting.  So it needs no socket, one greenlet may read while
another writes, and TLS can run through whatever leads to the other end.

The end of a direction is close_notify (RFC 8446 section 6.1), and then the end of the stream
below.  An end below without close_notify is a truncation.  TLS 1.3 lets the other direction go
on; by TLS 1.2 (RFC 5246 section 7.2.1) and in many servers close_notify ends both, so that how a
half-closed connection goes on is up to the far end.
"""

from __future__ import annotations

import ssl

import gevent

from gsocks.errors import StreamClosed, StreamError, Truncated
from gsocks.stream import CHUNK, Stream

#: seconds in which the far end of a connection that has ended in both directions may close it
LINGER = 2.0


class TlsStream:
    """TLS over ``stream``, which it owns.

    ``host``: the name or address that the far end's certificate must be for; None at the end
    that has the certificate.
    """

    __slots__ = (
        "_arrived",
        "_decrypted",
        "_engine",
        "_read_ended",
        "_stream",
        "_to_send",
        "_write_ended",
    )

    def __init__(self, stream: Stream, context: ssl.SSLContext, host: str | None) -> None:
        self._stream: Stream | None = stream
        self._arrived = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._engine = context.wrap_bio(
            self._arrived, self._to_send, server_side=host is None, server_hostname=host
        )
        self._decrypted: list[bytes] = []
        self._read_ended = False
        self._write_ended = False

    def handshake(self) -> None:
        """Agree on keys and check the certificate, under the caller's timeout.

        Raises StreamError; the stream is the caller's to abort then.
        """
        while not self._step():
            self._receive()
        self._decrypt()  # what came behind the handshake: from here on nothing is left over

    def read(self) -> bytes:
        while not (self._decrypted or self._read_ended):
            self._receive()
            self._decrypt()
        data = b"".join(self._decrypted)
        self._decrypted.clear()
        return data

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._encrypt(rest[:CHUNK]) :]
            self._flush()

    def write_eof(self) -> None:
        if self._write_ended:
            return
        stream = self._open_stream()
        # Ours made, the engine looks for the far end's close_notify, and would lose any data that
        # it found instead; but whatever has arrived is decrypted already.
        try:
            self._engine.unwrap()
        except ssl.SSLWantReadError:
            pass  # it is not there yet; ours is ready to be sent
        except ssl.SSLError as error:
            raise StreamError(_in_words(error)) from None
        self._flush()
        stream.write_eof()
        self._write_ended = True

    def abort(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._decrypted.clear()
            stream.abort()

    def close(self) -> None:
        if not (self._read_ended and self._write_ended) or self._decrypted:
            self.abort()
            return
        stream, self._stream = self._stream, None
        if stream is not None:
            # Behind its close_notify the far end still has to close the connection.  Nobody
            # needs to wait for that; but a reset instead could overtake our own last bytes.
            gevent.spawn(_close_after_end, stream)

    # --- between the engine and the stream --------------------------------------------------

    def _step(self) -> bool:
        """Take the handshake as far as it goes; whether that was its end."""
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            self._last_words()
            raise StreamError(_in_words(error)) from None
        else:
            done = True
        self._flush()
        return done

    def _last_words(self) -> None:
        try:
            self._flush()
        except StreamError:
            pass  # the far end is gone, and needn't be told what was wrong

    def _encrypt(self, data: memoryview) -> int:
        """Returns how many bytes the engine took."""
        self._open_stream()
        try:
            return self._engine.write(data)
        except ssl.SSLError as error:
            raise StreamError(_in_words(error)) from None

    def _flush(self) -> None:
        stream = self._open_stream()
        if data := self._to_send.read():
            stream.write(data)

    def _receive(self) -> None:
        """Wait for bytes from the stream below.

        What the engine has to say to them (to a change of keys, for one) goes out with the next
        write: a reader must not write, and RFC 8446 section 4.6.3 asks for no more.
        """
        data = self._open_stream().read()
        if not data:
            raise Truncated("the connection ended without the end of TLS")
        self._arrived.write(data)

    def _decrypt(self) -> None:
        """Decrypt all that has arrived; the engine keeps no more than a part of a record."""
        try:
            while data := self._engine.read(CHUNK):
                self._decrypted.append(data)
            self._read_ended = True
        except ssl.SSLZeroReturnError:  # the same, once our own direction has ended
            self._read_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            raise StreamError(_in_words(error)) from None

    def _open_stream(self) -> Stream:
        if self._stream is None:
            raise StreamClosed("closed at this end")
        return self._stream


def _close_after_end(stream: Stream) -> None:
    gevent.with_timeout(LINGER, _read_to_end, stream, timeout_value=None)
    stream.close()


def _read_to_end(stream: Stream) -> None:
    try:
        while stream.read():
            pass
    except StreamError:
        pass  # an end too


def _in_words(error: ssl.SSLError) -> str:
    """OpenSSL's reason in one line; never anything that was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate can't be trusted: {error.verify_message}"
    if error.reason == "WRONG_VERSION_NUMBER":
        return "what answers doesn't speak TLS"
    return f"TLS failed: {(error.reason or 'unknown cause').replace('_', ' ').lower()}"
