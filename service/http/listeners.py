"""The sockets that the service listens on, public and for control. Knows no HTTP."""

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

BACKLOG = 2048
"""Most connections that wait to be accepted; the system may allow fewer."""
_SO_ATTACH_FILTER = 26  # of Linux; Python's socket module does not name it
_DROP_SYN_FILTER = (  # classic BPF over the TCP header on: (code, jump if true, if false, k)
    (0x30, 0, 0, 13),  # load the flags byte
    (0x54, 0, 0, 0x12),  # keep the SYN and ACK flags
    (0x15, 0, 1, 0x02),  # is SYN alone set?
    (0x06, 0, 0, 0),  # yes: drop the segment
    (0x06, 0, 0, 0xFFFFFFFF),  # no: accept all of it
)
_TCP_INFO_UNACKED = struct.Struct("=24xI")  # of a listening socket: connections in its backlog


def listen(host: str, port: int) -> socket.socket:
    """Listen on a TCP port; raises OSError.

    host: an address or a name; an IPv6 address may be in brackets. `::` takes IPv4 connections,
    too, as far as the system has both. Empty: every address.
    """
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if ":" not in host:
        return socket.create_server((host, port), backlog=BACKLOG)
    if not socket.has_ipv6:
        raise OSError(errno.EAFNOSUPPORT, "this system has no IPv6")
    is_every_address = host == "::"
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6,
        backlog=BACKLOG,
        dualstack_ipv6=is_every_address and socket.has_dualstack_ipv6(),
    )


def duplicate(listener: socket.socket, count: int) -> list[socket.socket]:
    """Return `count` more descriptors of a listening socket, without making it block meanwhile.

    Blocking is a property of the socket, which all workers share, not of the descriptor.
    `socket.dup` sets it to Python's value for the original, which is "blocking" if the original
    came from another process. A worker that lost a race for a connection at this moment would hang
    in `accept` until the next connection.
    """
    listener.setblocking(False)
    return [listener.dup() for _ in range(count)]


def listen_for_control(path: Path) -> socket.socket:
    """Listen on a Unix socket that only this user can connect to.

    Raises:
        OSError: the socket cannot be made, or another process listens on it.
    """
    _remove_stale_socket(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        previous_umask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(previous_umask)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def default_control_socket(port: int) -> Path:
    """Return the path of the control listener of a service on `port`, unless configured."""
    return Path(tempfile.gettempdir()) / f"dropserve-{os.getuid()}" / f"control-{port}.sock"


def refuse_new_connections(listener: socket.socket) -> None:
    """Refuse new connections, while those in the backlog can still be accepted.

    Closing a listening socket resets the connections in its backlog. So the kernel first drops the
    segments that open a connection (SYN without ACK); a client then tries again a second later,
    when another process may listen. A handshake that has begun still completes. On systems other
    than Linux, which lack the filter, this does nothing.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    instructions = b"".join([struct.pack("HBBI", *each) for each in _DROP_SYN_FILTER])
    program = ctypes.create_string_buffer(instructions)
    filter_program = struct.pack("HL", len(_DROP_SYN_FILTER), ctypes.addressof(program))
    with suppress(OSError):  # a sandbox may forbid it
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)


def backlog_length(listener: socket.socket) -> int:
    """Return how many connections wait to be accepted; 0 where the system does not report it."""
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return 0
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED.size)
    except OSError:
        return 0
    length: int = _TCP_INFO_UNACKED.unpack(info)[0]
    return length


def raise_descriptor_limit(wanted: int) -> int:
    """Raise the limit on open files to `wanted`, or as far as allowed; return the new limit."""
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        return limit
    return soft


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that a service left behind when it ended."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return  # if a file is in the way, `bind` raises the error
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
