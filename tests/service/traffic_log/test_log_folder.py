"""Segments of a traffic log: what is finished is whole, and the folder is bounded."""

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import orjson
import pytest

from service.traffic_log.image_files import (
    StoredImageError,
    encode_image,
    read_image,
    write_image,
)
from service.traffic_log.log_folder import LogFolder, LogLimits
from service.traffic_log.log_reading import TrafficLogError, read_lines
from service.traffic_log.traffic_record import TrafficLine, image_digest
from tests.conftest import ROOT

SEGMENT_BYTES, FINISHED_BYTES = 2**15, 2**17
KILLS = 3
WRITE_FOR_EVER = """
import sys
from pathlib import Path
import numpy as np
from service.traffic_log.log_folder import LogFolder, LogLimits
from service.traffic_log.traffic_record import TrafficLine, image_digest
log = LogFolder(Path(sys.argv[1]), LogLimits(*map(int, sys.argv[2:4]), int(sys.argv[4]), True))
log.recover()
for number in range(10**9):
    image = np.full((1, 4, 4), number, np.float32)
    digest = image_digest(image)
    log.append([TrafficLine(digest, image, b'{"digest":"%b"}\\n' % digest.encode())] * 3)
    if number == 50:
        print("writing", flush=True)
"""
"""A program that is killed while it writes; its arguments are the folder and the limits."""


def folder(path: Path, *, seconds: float = 3600.0, images: bool = True) -> LogFolder:
    return LogFolder(path, LogLimits(SEGMENT_BYTES, seconds, FINISHED_BYTES, images))


def line(number: int) -> TrafficLine:
    """Return a line with an image of its own, of 8-bit pixels if the number is even."""
    pixels = np.full((1, 4, 4), number % 256, np.float32) / np.float32(255)
    image = pixels if number % 2 == 0 else pixels + np.float32(1e-4)
    digest = image_digest(image)
    text = orjson.dumps({"number": number, "digest": digest}) + b"\n"
    return TrafficLine(digest, image, text)


def finished(path: Path) -> dict[str, bytes]:
    """Return the finished segments; a process that writes may remove the oldest meanwhile."""
    found = {}
    for each in path.glob("*.jsonl"):
        with suppress(FileNotFoundError):
            found[each.name] = each.read_bytes()
    return found


def size(path: Path) -> int:
    return sum(each.stat().st_blocks * 512 for each in path.rglob("*") if each.is_file())


def check_whole(path: Path) -> None:
    """Every line of a finished segment is whole, and has its image."""
    for name, content in finished(path).items():
        assert content.endswith(b"\n")
        for text in content.splitlines():
            digest = orjson.loads(text)["digest"]
            image = read_image(path / name.replace(".jsonl", ".images"), digest)
            assert image is not None
            assert image_digest(image) == digest


def test_killed_process_leaves_whole_lines_and_the_next_one_finishes_its_segment(
    tmp_path: Path,
) -> None:
    before: dict[str, bytes] = {}
    for _ in range(KILLS):
        limits = map(str, (SEGMENT_BYTES, 3600, FINISHED_BYTES))
        command = [sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path), *limits]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        acknowledged = finished(tmp_path)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        after = finished(tmp_path)
        # What a rotation has acknowledged does not change until it is removed as the oldest.
        kept = {name: content for name, content in (before | acknowledged).items() if name in after}
        assert kept == {name: after[name] for name in kept}
        check_whole(tmp_path)
        before = after
    folder(tmp_path).recover()
    assert list(tmp_path.glob("*.part")) == []
    check_whole(tmp_path)
    assert finished(tmp_path)


def test_cut_line_is_left_out_by_readers_and_removed_by_recovery(tmp_path: Path) -> None:
    part = tmp_path / "traffic-20260101T000000.000000Z-1.jsonl.part"
    part.write_bytes(line(2).text + line(4).text[:-5])
    assert [text for text, _ in read_lines(tmp_path)] == [line(2).text]
    folder(tmp_path).recover()
    assert list(finished(tmp_path).values()) == [line(2).text]
    assert not part.exists()


def test_segment_without_a_whole_line_is_removed(tmp_path: Path) -> None:
    (tmp_path / "traffic-1.jsonl.part").write_bytes(b"cut")
    folder(tmp_path).recover()
    assert list(tmp_path.iterdir()) == []


def test_segment_without_a_line_that_fits_is_removed_with_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder(tmp_path)

    def no_space(_descriptor: int, _content: bytes, _position: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", no_space)
    with pytest.raises(OSError, match="No space"):
        log.append([line(2)])
    assert list(tmp_path.glob("*.images/*.png"))
    log.rotate()
    assert list(tmp_path.iterdir()) == []


def test_segment_that_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    writing = folder(tmp_path)
    writing.append([line(2)])
    folder(tmp_path).recover()
    writing.append([line(4)])
    writing.rotate()
    assert list(finished(tmp_path).values()) == [line(2).text + line(4).text]


def test_images_without_a_segment_are_removed_and_other_files_kept(tmp_path: Path) -> None:
    orphans = tmp_path / "traffic-1.images"
    orphans.mkdir()
    (orphans / "a.png").write_bytes(b"x")
    (tmp_path / "notes.txt").write_text("mine")
    folder(tmp_path).recover()
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_folder_of_two_workers_never_exceeds_its_bound(tmp_path: Path) -> None:
    logs = folder(tmp_path), folder(tmp_path)
    largest = 0
    for number in range(60):
        for log in logs:
            log.append([line(number)] * 2)
        largest = max(largest, size(tmp_path))
    assert FINISHED_BYTES / 2 < largest <= FINISHED_BYTES + len(logs) * SEGMENT_BYTES
    for log in logs:
        log.rotate()
    check_whole(tmp_path)
    assert size(tmp_path) <= FINISHED_BYTES


def test_segments_are_filled_though_images_are_large_or_come_again(tmp_path: Path) -> None:
    """What an image takes on the disk counts, not what it takes in memory, and it counts once."""
    log = folder(tmp_path)
    plain = np.zeros((3, 64, 64), np.float32)  # 48 KiB, more than a segment; a block as a file
    again = [TrafficLine(image_digest(plain), plain, line(2).text)] * 16
    for number in range(16):
        log.append(again)
        pixel = plain.copy()
        pixel[0, 0, 0] = np.float32(number) / np.float32(255)
        assert log.append([TrafficLine(image_digest(pixel), pixel, line(4).text)]) == (1, 0)
    log.rotate()
    filled = SEGMENT_BYTES - 2 * 4096  # one image more, and its line, did not fit
    assert len(finished(tmp_path)) <= -(-size(tmp_path) // filled)


def test_segment_ends_by_its_age(tmp_path: Path) -> None:
    log = folder(tmp_path, seconds=1e-9)
    log.append([line(2)])
    log.rotate_if_due()
    assert len(finished(tmp_path)) == 1
    assert log.seconds_until_rotation() is None


@pytest.mark.parametrize("number", [2, 3])
def test_stored_image_is_the_very_array(tmp_path: Path, number: int) -> None:
    log = folder(tmp_path)
    logged = line(number)
    log.append([logged])
    (images,) = tmp_path.glob("*.images")
    read = read_image(images, logged.digest)
    assert read is not None
    assert read.tobytes() == logged.image.tobytes()
    assert [each.suffix for each in images.iterdir()] == [".png" if number == 2 else ".npy"]


def test_image_with_a_negative_zero_is_stored_bit_by_bit(tmp_path: Path) -> None:
    image = np.zeros((1, 2, 2), np.float32)
    image[0, 0, 0] = -0.0
    digest = image_digest(image)
    assert write_image(tmp_path, digest, *encode_image(image))
    read = read_image(tmp_path, digest)
    assert read is not None
    assert read.tobytes() == image.tobytes()


def test_damaged_image_is_no_image(tmp_path: Path) -> None:
    logged = line(2)
    (tmp_path / f"{line(4).digest}.png").write_bytes(b"no PNG")
    np.save(tmp_path / f"{logged.digest}.npy", logged.image + np.float32(1))
    for digest in (line(4).digest, logged.digest):
        with pytest.raises(StoredImageError, match=digest):
            read_image(tmp_path, digest)
    assert read_image(tmp_path, "0" * 64) is None


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    log = folder(tmp_path / "log")
    log.append([line(2)])
    log.rotate()
    modes = {each.stat().st_mode & 0o077 for each in [tmp_path / "log", *tmp_path.rglob("log/*")]}
    assert modes == {0}


def test_lines_that_the_disk_refuses_leave_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = folder(tmp_path, images=False)
    log.append([line(2)])
    write = os.pwrite

    def half(descriptor: int, content: bytes, position: int) -> int:
        if position > len(line(2).text):
            raise OSError(28, "No space left on device")
        return write(descriptor, content[:5], position)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="No space"):
        log.append([line(4)])
    monkeypatch.undo()
    log.append([line(6)])
    log.rotate()
    assert list(finished(tmp_path).values()) == [line(2).text + line(6).text]


def test_folder_without_a_log_is_refused_with_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(TrafficLogError, match="name the folder of --traffic-log"):
            list(read_lines(path))


def test_lock_is_held_while_a_segment_is_written(tmp_path: Path) -> None:
    log = folder(tmp_path)
    log.append([line(2)])
    (part,) = tmp_path.glob("*.part")
    with part.open("rb") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_segment_that_is_finished_while_the_log_is_read_is_read(tmp_path: Path) -> None:
    log = folder(tmp_path)
    for number in range(2):
        log.append([line(number)])
        if not number:
            log.rotate()
    reading = read_lines(tmp_path)
    found = [next(reading)[0]]
    log.rotate()
    assert [*found, *(text for text, _ in reading)] == [line(each).text for each in range(2)]


def test_images_that_no_segment_has_room_for_begin_no_segment_each(tmp_path: Path) -> None:
    log = folder(tmp_path)
    image = np.random.default_rng(0).random((1, 1024, 1024), np.float32)
    for number in range(3):
        text = line(number).text
        assert log.append([TrafficLine(str(number), image, text)]) == (0, 1)
    assert finished(tmp_path) == {}
