"""Peers that only claim to be on other hosts, and a clock that does not wait."""

from dataclasses import replace

from service.registry.process_identity import ProcessIdentity, this_process


class Clock:
    """A clock that tests set."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def on_host(letter: str, pid: int = 1) -> ProcessIdentity:
    """Return a process of another host; in a container each service has the number 1."""
    return replace(this_process(), host=letter * 16, pid=pid)
