"""A port for a program that cannot choose one itself."""

import socket


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
