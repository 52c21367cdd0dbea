"""TLS over any Stream, as a Stream.

The TLS engine works on memory only: what it sends and receives goes through two buffers, and the
stream below is read and written as any other.  So it needs no socket, one direction may wait while
the other goes on, and TLS can run through whatever leads to the other end.

The end of a direction is close_notify (RFC 8446 section 6.1), and then the end of the stream
below.  An end below without close_notify is a truncation.  TLS 1.3 lets the other direction go
on; by TLS 1.2 (RFC 5246 section 7.2.1) and in many servers close_notify ends both, so that how a
half-closed connection goes on is up to the far end.
"""

from __future__ import annotations

import ssl
from typing import Any, cast

import gevent

from gsocks.deadline import call_with_timeout
from gsocks.errors import StreamError, TlsFailed, Truncated
from gsocks.stream import (
    CHUNK,
    NOTHING,
    Bytes,
    NonblockingStream,
    ScratchBuffers,
    Stream,
    StreamOver,
    scratch_of_this_hub,
)

#: seconds in which the far end of a connection that has ended in both directions may close it
CLOSE_GRACE = 2.0


class TlsStream(StreamOver):
    """TLS over ``stream``, which it owns.

    ``host``: the name or address that the far end's certificate must be for; None at the end
    that has the certificate.
    """

    __slots__ = (
        "_arrived",
        "_decrypted",
        "_ending",
        "_engine",
        "_failure",
        "_read_ended",
        "_to_send",
        "_write_ended",
    )

    def __init__(self, stream: Stream, context: ssl.SSLContext, host: str | None) -> None:
        super().__init__(stream)
        self._arrived = ssl.MemoryBIO()
        self._to_send = ssl.MemoryBIO()
        self._engine = context.wrap_bio(
            self._arrived, self._to_send, server_side=host is None, server_hostname=host
        )
        #: decrypted, and not read yet
        self._decrypted: Bytes = NOTHING
        #: what broke TLS behind that
        self._failure: StreamError | None = None
        self._read_ended = False
        self._write_ended = False
        #: whether the end of the stream below is to follow close_notify, which is on its way
        self._ending = False

    def __repr__(self) -> str:
        return f"<TlsStream: {self._engine.version() or 'no version yet'} over {self._stream!r}>"

    def handshake(self) -> None:
        """Agree on keys and check the certificate, under the caller's timeout.

        Waits for the far end.  Raises StreamError; the stream is the caller's to abort then.
        """
        while not self._step():
            self._feed(self._open_stream().read())
        # What came behind the handshake is decrypted now, so that the engine keeps no more than a
        # part of a record.
        self._decrypted = bytes(self._decrypt(scratch_of_this_hub()))

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The far end's certificate, as ``SSLSocket.getpeercert`` has it; empty if it was not
        verified, None if there is none."""
        return self._engine.getpeercert()

    @property
    def alpn(self) -> str | None:
        """The protocol that ALPN has selected."""
        return self._engine.selected_alpn_protocol()

    def unread(self, data: bytes) -> None:
        """Have ``data``, which was read before, be read again."""
        self._decrypted = data + bytes(self._decrypted)

    # the end is close_notify: what comes behind it in the stream below breaks nothing, and is not
    # watched for
    take_watcher = NonblockingStream.take_watcher
    watch_end = NonblockingStream.watch_end

    # --- reading ------------------------------------------------------------------------------

    def read_nowait(self, scratch: ScratchBuffers) -> Bytes | None:
        stream = self._open_stream()
        data, self._decrypted = self._decrypted, NOTHING
        if len(data) > ScratchBuffers.room:  # as no write takes at once
            data, self._decrypted = data[: ScratchBuffers.room], data[ScratchBuffers.room :]
        while not (data or self._read_ended):
            if self._failure is not None:
                raise self._failure
            sealed = stream.read_nowait(scratch)
            if sealed is None:
                return None
            self._feed(sealed)
            data = self._decrypt(scratch)
            if not (data or self._has_news or stream.has_buffered):
                return None  # a far end may send tickets, which are no data, without end
        return data

    @property
    def has_buffered(self) -> bool:
        return self._has_news or self._open_stream().has_buffered

    @property
    def has_prefetched(self) -> bool:
        return self._has_news or self._open_stream().has_prefetched

    @property
    def _has_news(self) -> bool:
        return bool(self._decrypted) or self._read_ended or self._failure is not None

    # --- writing ------------------------------------------------------------------------------

    def write_nowait(self, data: Bytes, scratch: ScratchBuffers) -> bool:
        self._open_stream()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._engine.write(rest[:CHUNK]) :]
        except ssl.SSLError as error:
            raise tls_failure(error) from None
        return self._pass_on(scratch)

    def write_eof_nowait(self, scratch: ScratchBuffers) -> bool:
        if self._write_ended:
            return True
        self._open_stream()
        # Ours made, the engine looks for the far end's close_notify, and would lose any data that
        # it found instead; but whatever has arrived is decrypted already.
        try:
            self._engine.unwrap()
        except ssl.SSLWantReadError:
            pass  # it is not there yet; ours is ready to be sent
        except ssl.SSLError as error:
            raise tls_failure(error) from None
        self._write_ended = self._ending = True
        return self._pass_on(scratch) and self._end_below(scratch)

    def flush_nowait(self, scratch: ScratchBuffers) -> bool:
        return self._open_stream().flush_nowait(scratch) and self._end_below(scratch)

    def _end_below(self, scratch: ScratchBuffers) -> bool:
        """End the stream below if close_notify has been sent; returns as write_nowait."""
        ending, self._ending = self._ending, False
        return not ending or self._open_stream().write_eof_nowait(scratch)

    def _pass_on(self, scratch: ScratchBuffers) -> bool:
        """Write what the engine has made; returns as write_nowait."""
        data = self._to_send.read()
        return not data or self._open_stream().write_nowait(data, scratch)

    # --- the end ------------------------------------------------------------------------------

    def abort(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._decrypted = NOTHING
            self._wake()
            stream.abort()

    def close(self) -> None:
        if not (self._read_ended and self._write_ended) or self._decrypted or self._ending:
            self.abort()
            return
        stream, self._stream = self._stream, None
        if stream is not None:
            self._wake()
            # Behind its close_notify the far end still has to close the connection.  Nothing
            # needs to wait for that; but a reset instead could overtake our own last bytes.
            gevent.spawn(_close_after_end, stream)

    # --- between the engine and the stream below ----------------------------------------------

    def _step(self) -> bool:
        """Take the handshake as far as it goes; True at its end."""
        try:
            self._engine.do_handshake()
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            try:
                self._send_made()
            except StreamError:
                pass  # the far end is gone, and needs no alert
            raise tls_failure(error) from None
        else:
            done = True
        self._send_made()
        return done

    def _send_made(self) -> None:
        if data := self._to_send.read():
            self._open_stream().write(data)

    def _feed(self, sealed: Bytes) -> None:
        """Hand bytes from the stream below to the engine.

        What the engine answers to them (to a change of keys, for one) goes out with the next
        write: a reader must not write, and RFC 8446 section 4.6.3 requires no more.
        """
        if not sealed:
            raise Truncated("the connection ended without the end of TLS")
        self._arrived.write(sealed)

    def _decrypt(self, scratch: ScratchBuffers) -> Bytes:
        """Decrypt all that has arrived; the engine keeps no more than a part of a record."""
        room, filled = scratch.plain, 0
        try:
            # typed as if it returned bytes, although it has a buffer
            while count := cast(int, self._engine.read(len(room) - filled, room[filled:])):
                filled += count
                if filled == len(room):  # with the part of a record that was kept, it was too much
                    self._decrypted = self._decrypt_rest()
                    return room
            self._read_ended = True
        except ssl.SSLZeroReturnError:  # the same, once our own direction has ended
            self._read_ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._failure = tls_failure(error)
        return room[:filled]

    def _decrypt_rest(self) -> bytes:
        more = ScratchBuffers()
        return bytes(self._decrypt(more))


def _close_after_end(stream: Stream) -> None:
    call_with_timeout(CLOSE_GRACE, _read_to_end, stream, on_timeout=None)
    stream.close()


def _read_to_end(stream: Stream) -> None:
    try:
        while stream.read():
            pass
    except StreamError:
        pass  # an end too


def tls_failure(error: ssl.SSLError) -> TlsFailed:
    """OpenSSL's reason in one line; never anything that was sent."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TlsFailed(f"its certificate can't be trusted: {error.verify_message}")
    if error.reason == "WRONG_VERSION_NUMBER":
        return TlsFailed("the far end doesn't speak TLS")
    reason = (error.reason or "unknown cause").replace("_", " ").lower()
    return TlsFailed(f"TLS failed: {reason}")
