"""The sockets that a service listens on: the public one, and the one for control.

Knows no HTTP.
"""

import ctypes
import os
import socket
import stat
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

BACKLOG = 2048
"""Connections that wait to be accepted; the system may allow fewer."""
_PRIVATE = 0o700
_SO_ATTACH_FILTER = 26  # of Linux; Python's socket module does not name it
_NO_SYN = (  # classic BPF, which sees a segment from its TCP header on: (code, true, false, k)
    (0x30, 0, 0, 13),  # load the byte of flags
    (0x54, 0, 0, 0x12),  # of which SYN and ACK count
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # then keep 0 bytes: drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else keep all
)
_TCP_INFO_UNACKED = struct.Struct("=24xI")  # of a listening socket: connections in its backlog


def listen(host: str, port: int) -> socket.socket:
    """Listen for the public; raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=BACKLOG)


def duplicates(listener: socket.socket, count: int) -> list[socket.socket]:
    """Return `count` more descriptors of a listening socket, which never blocks meanwhile.

    Whether a socket blocks is a property of the socket, not of the descriptor. `socket.dup` sets it
    to what Python believes of the original, and that is "it blocks" where the original came from
    another process. Another worker that just then lost a race for a connection would hang in
    `accept` until the next one came.
    """
    listener.setblocking(False)
    return [listener.dup() for _ in range(count)]


def listen_for_control(path: Path) -> socket.socket:
    """Listen on a Unix socket that this user alone can connect to.

    Raises:
        OSError: the socket cannot be made, or another process listens there.
    """
    _make_room(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def default_control_socket(port: int) -> Path:
    """Return where a service on the public port `port` listens for control by default."""
    return Path(tempfile.gettempdir()) / f"dropserve-{os.getuid()}" / f"control-{port}.sock"


def make_private_folder(folder: Path) -> None:
    """Make a folder for this user alone; raises OSError, also where it is another user's."""
    folder.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(0, "it belongs to another user")
    if stat.S_IMODE(status.st_mode) != _PRIVATE:
        folder.chmod(_PRIVATE)


def refuse_new_connections(listener: socket.socket) -> None:
    """Let no new connection begin, while those in the backlog can still be accepted.

    A listening socket that is closed resets what is in its backlog. So the kernel first drops what
    would begin a connection, the segments with SYN alone; a client then tries again a second later,
    when another process may listen. A handshake that is half done still ends. Without the filter
    (elsewhere than on Linux) nothing is done.
    """
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return
    instructions = b"".join([struct.pack("HBBI", *each) for each in _NO_SYN])
    program = ctypes.create_string_buffer(instructions)
    described = struct.pack("HL", len(_NO_SYN), ctypes.addressof(program))
    with suppress(OSError):  # a sandbox may forbid it
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)


def backlog(listener: socket.socket) -> int:
    """Count the connections that wait to be accepted; 0 where the system does not tell."""
    if sys.platform != "linux" or listener.family == socket.AF_UNIX:
        return 0
    try:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_UNACKED.size)
    except OSError:
        return 0
    waiting: int = _TCP_INFO_UNACKED.unpack(info)[0]
    return waiting


def allow_descriptors(wanted: int) -> int:
    """Raise the limit on open files to `wanted`, as far as the system lets us; return it."""
    import resource  # not on every system

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        return most
    return soft


def _make_room(path: Path) -> None:
    """Remove a socket that a service which has ended left behind."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return  # binding will say what is wrong
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
