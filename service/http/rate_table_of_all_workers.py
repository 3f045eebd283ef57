"""A table of a fixed size with two times for each client, which several workers may share.

It knows no client but by a hash, and no limit. Clients cannot make it grow: where a set of eight
places is taken, the client that has least to pay is forgotten.
"""

import hashlib
import mmap
import os
import secrets
from pathlib import Path

REQUESTS, IMAGES = 1, 2
"""The fields of a slot besides its tag: when the client will have paid for its requests, and for
its images; seconds of `time.monotonic`, which all processes of a machine share."""
SLOTS, _WAYS = 2**14, 8
"""Clients that are remembered, in sets of eight."""
_FIELDS = 3
_SECRET_BYTES = 16
_BYTES = _SECRET_BYTES + SLOTS * _FIELDS * 8
_FILE_NAME = "client-rates"


class RateTable:
    """Finds the slot of a client.

    Workers change it without a lock: two that charge one client at the same instant may lose one of
    the charges, which costs less than waiting for a worker that has been stopped.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        """Take memory that begins with the secret key of the hash, the rest being zeros at first.

        Without the secret, clients could choose addresses that displace a certain other one.
        """
        self._secret = memory[:_SECRET_BYTES]
        table = memoryview(memory)[_SECRET_BYTES:]
        self._tags = table.cast("Q")
        self.times = table.cast("d")
        """The times, at a slot's number plus a field."""

    def tag(self, client: str) -> int:
        """Return the hash of a client, which is not 0."""
        digest = hashlib.blake2b(client.encode(), key=self._secret, digest_size=8).digest()
        return int.from_bytes(digest, "little") or 1

    def slot(self, tag: int) -> int:
        """Return the number of a client's slot, a new one if it is not remembered."""
        tags, times = self._tags, self.times
        first = tag % (SLOTS // _WAYS) * _WAYS * _FIELDS
        if tags[first] == tag:  # as it is unless clients meet in a set
            return first
        slots = range(first, first + _WAYS * _FIELDS, _FIELDS)
        for slot in slots:
            if tags[slot] == tag:
                return slot
        slot = min(slots, key=lambda each: max(times[each + REQUESTS], times[each + IMAGES]))
        times[slot + REQUESTS] = times[slot + IMAGES] = 0.0
        tags[slot] = tag
        return slot


def table_in_memory() -> RateTable:
    """Return an empty table of this process alone."""
    memory = mmap.mmap(-1, _BYTES)
    memory[:_SECRET_BYTES] = secrets.token_bytes(_SECRET_BYTES)
    return RateTable(memory)


def make_shared_table(folder: Path) -> None:
    """Make the file of an empty table that the workers of a service will share.

    Raises:
        OSError: there is no room for it.
    """
    descriptor = os.open(folder / _FILE_NAME, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, _BYTES)  # or writing would end the process later
        os.pwrite(descriptor, secrets.token_bytes(_SECRET_BYTES), 0)
    finally:
        os.close(descriptor)


def shared_table(folder: Path) -> RateTable:
    """Return the table that `make_shared_table` has made in a folder; raises OSError."""
    descriptor = os.open(folder / _FILE_NAME, os.O_RDWR)
    try:
        return RateTable(mmap.mmap(descriptor, _BYTES))
    finally:
        os.close(descriptor)
