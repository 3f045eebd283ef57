"""TLS between a TCP connection and the HTTP protocol, for clients that may be hostile.

uvloop's own TLS tells the protocol of a connection only after its handshake, so that a client with
unfinished ones would exceed its share unseen, and buffers what is counted nowhere. Here the
protocol has the connection from its first moment: its quota, its time limits and its place among
the idle ones are those of plain HTTP. OpenSSL does the cryptography, on buffers in memory.
"""

import asyncio
import ssl
from contextlib import suppress
from typing import Any

from service.http.error_responses import https_required
from service.http.http_protocol import HttpProtocol
from service.tls.server_certificate import ServerCertificate

_READ_BYTES = 2**14
"""The most bytes that one record holds."""
_RECORD_HEAD_BYTES = 5
"""A record begins with its type, its version, and its length in two bytes."""
_RECORDS_AT_ONCE, _MAX_RECORDS = 8, 64
"""Records that are decrypted before it is seen whether they hold anything for the application, and
those that are decrypted in one iteration of the event loop.

A read holds at most 16 long ones, or thousands of a byte each.
"""
_HANDSHAKE_BYTES = 2**17
"""What a handshake may take of memory: nine bytes announce a message of 128 KiB, and OpenSSL
reserves its length at once."""
_PLAIN_HTTP = "HTTP_REQUEST"
"""OpenSSL's reason where a request comes instead of a handshake."""
_CLIENT_CERTIFICATE_REASONS = ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "CERTIFICATE_VERIFY_FAILED")


class TlsConnection(asyncio.Protocol, asyncio.Transport):
    """One connection: the protocol of its TCP transport, and the transport of its HTTP protocol."""

    turn_cost = 8
    """How many requests of the client's quota a step of a handshake counts as: it takes that
    long."""

    def __init__(self, protocol: HttpProtocol, certificate: ServerCertificate) -> None:
        super().__init__()
        context = certificate.context
        assert context is not None, "the server accepts no connection before there is one"
        self._protocol = protocol
        self._certificate = certificate
        self._context = context
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._tcp: asyncio.Transport
        self._records = _RecordCounter()
        self._is_handshaking = True
        self._has_begun = self._has_failed = False
        """Whether the handshake has begun, in its turn, and whether it has failed."""
        self._needs_turn = True
        """Whether what the client sends next takes its turn among its requests, as each step of a
        handshake does. So does what follows other messages of TLS, such as new keys: each costs
        OpenSSL as much as a short request."""
        self._counted_bytes = 0
        """What the client's share has been told of."""
        self._undecrypted = bytearray()
        """Received data that waits for a later iteration of the event loop."""
        self._is_decrypt_scheduled = False
        self._is_reading_paused = self._is_writing_paused = False
        self._has_sent_end = self._has_received_end = False
        """Whether this side has sent all it will, and whether the client has."""

    # --- the protocol of the TCP transport ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Hand the connection to the HTTP protocol, which counts it and limits its time."""
        self._tcp = transport
        self._protocol.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Release what the connection has, and tell the HTTP protocol."""
        if self._is_handshaking and self._has_begun and not self._has_failed:
            self._certificate.count_failure("incomplete")
        self._undecrypted.clear()
        self._protocol.connection_lost(exc)
        del self._ssl, self._incoming, self._outgoing  # not only when the garbage is collected

    def data_received(self, data: bytes) -> None:
        """Decrypt data, or keep it if its turn has not come."""
        if self._has_sent_end:
            self._protocol.data_received(data)  # which counts it and discards it
        elif self._has_received_end:
            return
        elif self._undecrypted or not self._may_decrypt():
            self._keep(data)
        else:
            self._decrypt(data)

    def eof_received(self) -> bool:
        """Return whether the connection is kept for a response."""
        return not self._is_handshaking and self._protocol.eof_received()

    def pause_writing(self) -> None:
        """Read nothing more: what a client sends may call for an answer, also within TLS."""
        self._is_writing_paused = True
        self._control_reading()
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        """Read again."""
        self._is_writing_paused = False
        self._control_reading()
        self._protocol.resume_writing()

    # --- its turn ---

    def _may_decrypt(self) -> bool:
        """Return whether data may be decrypted now; if not, its turn comes."""
        return not self._needs_turn or self._has_turn()

    def _has_turn(self) -> bool:
        """Take a turn of the client's quota of requests, or wait for one."""
        has_turn = self._protocol.may_begin_handshake(self)
        self._is_decrypt_scheduled = not has_turn
        return has_turn

    def begin_waiting_request(self) -> None:
        """Decrypt what has waited for the client's quota; `Client` calls it."""
        self._decrypt_kept()

    def evict_if_idle(self) -> bool:
        """Leave that to the HTTP protocol, which is what the client's connections are."""
        return False

    def _keep(self, data: bytes) -> None:
        self._undecrypted += data
        self._count_kept()
        self._control_reading()

    def _count_kept(self) -> None:
        """Count what is kept against the client's share, and what the handshake may take."""
        is_unfinished = self._has_begun and self._is_handshaking
        size = len(self._undecrypted) + (_HANDSHAKE_BYTES if is_unfinished else 0)
        if size == self._counted_bytes:
            return
        self._counted_bytes = size
        if not self._protocol.keep_undecrypted(size):
            self._tcp.abort()

    def _schedule_decrypt(self) -> None:
        """Decrypt what is kept in the next iteration of the event loop, or in its turn."""
        if not self._is_decrypt_scheduled and (not self._needs_turn or self._has_turn()):
            self._is_decrypt_scheduled = True
            self._protocol.loop.call_soon(self._decrypt_kept)

    def _decrypt_kept(self) -> None:
        self._is_decrypt_scheduled = False
        if self._tcp.is_closing() or self._is_reading_paused:
            return
        data = bytes(self._undecrypted)
        self._undecrypted.clear()
        self._decrypt(data)
        if not self._undecrypted:
            self._control_reading()

    # --- decrypting ---

    def _decrypt(self, data: bytes) -> None:
        """Decrypt records up to the limit of one iteration, and hand what they hold on."""
        found: list[bytes] = []
        start = records = 0
        self._has_begun = True
        self._needs_turn = self._is_handshaking
        try:
            while (
                start < len(data)
                and records < _MAX_RECORDS
                and not (self._needs_turn and records)
                and not self._has_received_end
            ):
                size, whole = self._records.count(data[start:], _RECORDS_AT_ONCE)
                self._incoming.write(data[start : start + size])
                start += size
                records += whole
                was_handshaking = self._is_handshaking
                has_messages = self._read_records(found) < whole and not was_handshaking
                self._needs_turn = self._is_handshaking or has_messages
        except ssl.SSLError as error:
            self._refuse(error)
            return
        self._send_outgoing()
        if self._has_received_end:
            start = len(data)
        self._undecrypted += data[start:]
        self._count_kept()
        if self._undecrypted:
            self._control_reading()
            self._schedule_decrypt()
        if found:
            self._protocol.data_received(found[0] if len(found) == 1 else b"".join(found))
        if self._has_received_end and not self._protocol.eof_received():
            self.close()

    def _read_records(self, found: list[bytes]) -> int:
        """Append what each complete record holds; return their number."""
        records = 0
        try:
            if self._is_handshaking:
                self._ssl.do_handshake()
                self._is_handshaking = False
            while self._incoming.pending or self._ssl.pending():
                content = self._ssl.read(_READ_BYTES)
                if not content:
                    self._has_received_end = True
                    break
                found.append(content)
                records += 1
        except ssl.SSLWantReadError:
            pass  # an exception costs more than a look whether there is more
        return records

    def _refuse(self, error: ssl.SSLError) -> None:
        """Send OpenSSL's alert, or a plain response to a plain request, and close."""
        if self._is_handshaking:
            self._has_failed = True
            self._certificate.count_failure(_reason(error))
        if error.reason == _PLAIN_HTTP:
            self._tcp.write(self._protocol.refusal(https_required()))
        else:
            self._send_outgoing()
        self._tcp.close()
        self._protocol.limit_closing()

    # --- the transport of the HTTP protocol ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt data and send it; before the handshake, when nobody could read it, send none."""
        if self._is_handshaking or self._has_sent_end or self._tcp.is_closing():
            return
        try:
            sent = self._ssl.write(data)
            while sent < len(data):
                sent += self._ssl.write(memoryview(data)[sent:])
        except ssl.SSLError:  # the session has ended
            self._tcp.abort()
            return
        self._send_outgoing()

    def _send_outgoing(self) -> None:
        if self._outgoing.pending:
            self._tcp.write(self._outgoing.read())

    def can_write_eof(self) -> bool:
        """Return True: the connection can end in one direction, and linger."""
        return True

    def write_eof(self) -> None:
        """Send no more, and receive what is only discarded."""
        self._send_end()
        self._tcp.write_eof()
        self._control_reading()

    def close(self) -> None:
        """Send what is buffered and that it is the end, then close."""
        self._send_end()
        self._tcp.close()

    def _send_end(self) -> None:
        """Send close_notify, so that the client knows that nothing was cut off."""
        if self._has_sent_end or self._tcp.is_closing():
            return
        self._has_sent_end = True
        if self._is_handshaking:
            return
        with suppress(ssl.SSLError):  # it would wait for the client's, too
            self._ssl.unwrap()
        self._send_outgoing()

    def abort(self) -> None:
        """Close at once."""
        self._tcp.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed or is closing."""
        return self._tcp.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that are not sent yet, encrypted."""
        return self._tcp.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return what asyncio's transports know of a connection."""
        if name == "sslcontext":  # by which uvicorn tells the scheme
            return self._context
        return self._tcp.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Receive nothing for now."""
        self._is_reading_paused = True
        self._control_reading()

    def resume_reading(self) -> None:
        """Receive again, first what is kept."""
        self._is_reading_paused = False
        if self._undecrypted and not self._has_sent_end:
            self._schedule_decrypt()
        self._control_reading()

    def _control_reading(self) -> None:
        is_waiting = bool(self._undecrypted) or self._is_writing_paused
        if self._is_reading_paused or (is_waiting and not self._has_sent_end):
            self._tcp.pause_reading()
        else:
            self._tcp.resume_reading()


class _RecordCounter:
    """Finds where the records of a stream end, by the lengths in their heads alone."""

    def __init__(self) -> None:
        self._bytes_left = 0
        """How much of the record that has begun has not come yet."""
        self._head = b""
        """The part of a record's head that has come."""

    def count(self, data: bytes, limit: int) -> tuple[int, int]:
        """Return how many of the next bytes complete at most `limit` records, and their number.

        It is all of the bytes if they complete fewer.
        """
        before = len(self._head)
        data = self._head + data
        end, number = self._bytes_left, 0
        if end and end <= len(data):
            number = 1
        while number < limit and end + _RECORD_HEAD_BYTES <= len(data):
            end += _RECORD_HEAD_BYTES + int.from_bytes(data[end + 3 : end + _RECORD_HEAD_BYTES])
            number += end <= len(data)
        self._bytes_left = max(0, end - len(data))
        self._head = data[end:] if number < limit else b""
        return (end if number == limit else len(data)) - before, number


def _reason(error: ssl.SSLError) -> str:
    if error.reason == _PLAIN_HTTP:
        return "plain_http"
    return "client_certificate" if error.reason in _CLIENT_CERTIFICATE_REASONS else "protocol"
