import hashlib
import os
from threading import get_ident

from training.data.image_inspection import map_on_all_cores


def test_there_are_as_many_threads_as_processors_that_may_be_used() -> None:
    """As in a container that may use few of the machine's, or under `taskset`."""

    def working_thread(content: bytes) -> int:
        hashlib.sha256(content)
        return get_ident()

    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(usable)})
    try:
        threads = map_on_all_cores(working_thread, [bytes(2**20)] * 20, "Hashing")
    finally:
        os.sched_setaffinity(0, usable)
    assert len(set(threads)) == 1
