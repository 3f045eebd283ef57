"""The thread that writes: bounds, faults of file and disk, several writers of one file."""

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from service.errors import (
    FeedbackFullError,
    FeedbackUnavailableError,
    ServiceError,
    UnknownAnswerError,
)
from service.feedback.feedback_file import (
    SCHEMA_VERSION,
    FeedbackFile,
    FeedbackFileError,
    why_unusable,
)
from service.feedback.feedback_writer import AnswerRecord, FeedbackLimits, FeedbackWriter
from service.feedback.label_transaction import LabelledAnswer, LabelTransaction, TrueLabel
from service.feedback.remembered_answer import (
    AnsweredImage,
    Promise,
    RememberedAnswer,
    VersionIdentity,
)
from service.observability.metrics_recorder import Metrics
from service.settings import LEAST_FEEDBACK_BYTES
from tests.service.serving import TIMEOUT_SECONDS, check_sentence, metric

VERSION = VersionIdentity("digits", "1", "0" * 32, tuple("0123456789"), 500)
ANSWER = RememberedAnswer(
    Promise(0.02, 0.9, "thr"),
    (AnsweredImage(3, 0.8, False, (3, 5)), AnsweredImage(4, 0.6, True, (4,))),
)
LABEL_BYTES = 256


class Writing:
    """A writer, and what one does with it."""

    def __init__(self, path: Path, max_bytes: int = LEAST_FEEDBACK_BYTES) -> None:
        self.metrics = Metrics()
        self.writer = FeedbackWriter(path, FeedbackLimits(max_bytes, 100_000, 0.01), self.metrics)

    def answer(
        self,
        request_id: str,
        answer: RememberedAnswer = ANSWER,
        moment: float = 0.0,
        version: VersionIdentity = VERSION,
    ) -> None:
        record = AnswerRecord(moment, request_id, version, answer.to_bytes)
        self.writer.note(record, 1000)

    def label(
        self, request_id: str, label: str = "3", image: int = 0, png: bytes | None = None
    ) -> LabelledAnswer:
        size = LABEL_BYTES + len(png or b"")
        true = TrueLabel(request_id, image, label)
        future = self.writer.submit(lambda change, _: change.add(true, png), size)
        return future.result(TIMEOUT_SECONDS)

    def lose(self, request_id: str) -> None:
        """Let an answer come while the disk is full."""

        def fail() -> bytes:
            raise FeedbackFileError("The disk is full; free space on it.")

        self.writer.note(AnswerRecord(0.0, request_id, VERSION, fail), 1000)
        with pytest.raises(FeedbackUnavailableError, match="The disk is full"):
            self.read()

    def read(self) -> None:
        self.writer.submit(lambda _change, _file: None).result(TIMEOUT_SECONDS)

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.metrics.render().decode(), name, **labels)


@contextmanager
def writing(path: Path, max_bytes: int = LEAST_FEEDBACK_BYTES) -> Iterator[Writing]:
    writing = Writing(path, max_bytes)
    writing.writer.start()
    try:
        yield writing
    finally:
        writing.writer.close()


def test_answer_comes_back_as_it_was_remembered() -> None:
    content = ANSWER.to_bytes()
    found = RememberedAnswer.from_bytes(content)
    assert found.to_bytes() == content
    assert found.promise == ANSWER.promise
    assert found.images[1].abstained is True


def label_until_full(service: Writing) -> int:
    """Add labels with images of 100 kB until one is refused; return how many were added."""
    for number in range(100):
        service.answer(f"new-{number}")
        try:
            service.label(f"new-{number}", png=b"p" * 100_000)
        except FeedbackFullError as error:
            check_sentence(str(error), "The file of feedback is full, …; ask the operator to …")
            return number
    pytest.fail("a file of 4 MiB holds 10 MB")


def test_full_file_forgets_answers_first_and_then_refuses_labels_and_loses_none(
    tmp_path: Path,
) -> None:
    path = tmp_path / "feedback.db"
    with writing(path) as service:
        for number in range(40):
            service.answer(f"old-{number}", ANSWER._replace(images=ANSWER.images * 1000))
        added = label_until_full(service)
        assert service.metric("dropserve_feedback_failing") == 0
        with pytest.raises(ServiceError):
            service.label("old-0")
    assert 30 < added < 42
    assert path.stat().st_size <= LEAST_FEEDBACK_BYTES
    assert not list(tmp_path.glob("*-wal")), "the last to close copies the write-ahead log"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM labels").fetchone() == (added,)


def test_label_with_images_that_cannot_fit_is_refused_alone_and_no_answer_is_forgotten(
    tmp_path: Path,
) -> None:
    service = Writing(tmp_path / "feedback.db")
    for request_id in ("a", "b"):
        service.answer(request_id)
    too_large = service.writer.submit(lambda _change, _file: None, LEAST_FEEDBACK_BYTES)
    beside = service.writer.submit(lambda change, _: change.add(TrueLabel("a", 0, "3")), 256)
    service.writer.start()
    try:
        with pytest.raises(FeedbackFullError):
            too_large.result(TIMEOUT_SECONDS)
        assert beside.result(TIMEOUT_SECONDS).outcome == "added"
        assert service.label("b").outcome == "added"
    finally:
        service.writer.close()


def test_answer_that_cannot_fit_is_dropped_alone_and_may_be_lost(tmp_path: Path) -> None:
    with writing(tmp_path / "feedback.db") as service:
        service.answer("a")
        service.read()
        too_large = AnswerRecord(0.0, "lost", VERSION, lambda: bytes(LEAST_FEEDBACK_BYTES))
        service.writer.note(too_large, 1000)
        assert service.label("a").outcome == "added"
        assert service.metric("dropserve_feedback_answers_total", outcome="dropped") == 1
        with pytest.raises(FeedbackUnavailableError) as raised:
            service.label("lost")
    check_sentence(str(raised.value), "The answer to a request 'lost' may be lost, …")


def test_two_writers_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with writing(path) as first, writing(path) as second:
        first.answer("a")
        assert first.label("a").outcome == "added"
        assert second.label("a").outcome == "unchanged"
        assert second.label("a", "5").outcome == "replaced"
        assert first.label("a", "5") == LabelledAnswer("unchanged", "digits", "1", "3", False)


def test_latest_answer_counts_where_another_worker_writes_an_earlier_one_after_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "feedback.db"
    latest = ANSWER._replace(images=(AnsweredImage(7, 0.9, False, (7,)),))
    with writing(path) as first, writing(path) as second:
        second.answer("a", latest, moment=2.0)
        second.read()
        first.answer("a", moment=1.0)
        assert first.label("a", "7") == LabelledAnswer("added", "digits", "1", "7", True)

        def add_again(change: LabelTransaction, _file: FeedbackFile) -> bool:
            change.remember_once("a", VERSION, latest.to_bytes())
            return change.has_label("a", VERSION)

        assert second.writer.submit(add_again).result(TIMEOUT_SECONDS)


def damage(path: Path) -> None:
    path.write_bytes(b"no database at all, and long enough to be looked at" * 100)


def other_schema(path: Path) -> None:
    FeedbackFile.open(path, LEAST_FEEDBACK_BYTES).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")


def other_program(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE notes (text)")


def folder(path: Path) -> None:
    path.mkdir()


def link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (damage, "… is damaged, or no feedback file (…); move it away …, and a new one …"),
        (other_schema, "… has version 2 of the schema, and this program knows 1; …"),
        (other_program, "… is a database of another program; name another file."),
        (folder, "… cannot be opened (Is a directory); give this user access …"),
        (link, "… cannot be opened (…); give this user access to it and to its folder, …"),
    ],
)
def test_file_that_cannot_be_used_is_a_sentence_and_is_used_once_it_can(
    tmp_path: Path, fault: "object", sentence: str
) -> None:
    path = tmp_path / "feedback.db"
    assert callable(fault)
    fault(path)
    reason = why_unusable(path)
    with writing(path) as service:
        with pytest.raises(FeedbackUnavailableError) as raised:
            service.label("a")
        check_sentence(str(raised.value), sentence)
        assert reason == str(raised.value)
        assert service.metric("dropserve_feedback_failing") == 1
        service.answer("lost")
        with pytest.raises(FeedbackUnavailableError):
            service.label("lost")
        assert service.metric("dropserve_feedback_answers_total", outcome="dropped") == 1
        path.rename(tmp_path / "moved away")
        service.answer("a")
        assert service.label("a").outcome == "added"
        assert service.metric("dropserve_feedback_failing") == 0


def test_failing_ends_with_what_is_stored_and_not_with_what_is_read_or_refused(
    tmp_path: Path,
) -> None:
    sentence = "The answer to a request 'lost' may be lost, …; send the image with its label …"
    with writing(tmp_path / "feedback.db") as service:
        service.lose("lost")
        service.read()
        with pytest.raises(FeedbackUnavailableError) as raised:
            service.label("lost")
        check_sentence(str(raised.value), sentence)
        assert service.metric("dropserve_feedback_failing") == 1
        service.answer("a")
        assert service.label("a").outcome == "added"
        assert service.metric("dropserve_feedback_failing") == 0
        with pytest.raises(FeedbackUnavailableError):
            service.label("lost")
        with pytest.raises(UnknownAnswerError):
            service.label("never answered")


def with_logs(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}*"))


def remove_all(path: Path) -> None:
    for each in with_logs(path):
        each.unlink()


def move_all(path: Path) -> None:
    for each in with_logs(path):
        each.rename(each.with_name(each.name.replace("feedback", "moved")))


def move_without_logs(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    """Put another file of feedback in its place, which has no label yet."""
    FeedbackFile.open(path.with_name("new.db"), LEAST_FEEDBACK_BYTES).close()
    path.with_name("new.db").rename(path)


@pytest.mark.parametrize("change", [remove_all, move_all, move_without_logs, replace])
def test_labels_are_in_the_file_at_the_path_after_it_was_moved_or_removed(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path, moved = tmp_path / "feedback.db", tmp_path / "moved.db"
    with writing(path) as first, writing(path) as second:
        first.answer("before")
        assert first.label("before").outcome == "added"
        assert second.label("before").outcome == "unchanged"
        change(path)
        for number, service in enumerate((first, second, first, second)):
            service.answer(f"after-{number}")
            assert service.label(f"after-{number}").outcome == "added"
        assert second.metric("dropserve_feedback_failing") == 0
        with pytest.raises(UnknownAnswerError):
            first.label("before")
    assert labels_in(path) == 4
    assert not path.with_name("feedback.db-wal").exists()
    if change in (move_all, move_without_logs):
        assert labels_in(moved) == 1


def labels_in(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute("SELECT count(*) FROM labels").fetchone()[0]
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    return number


def test_label_is_not_acknowledged_if_the_file_is_moved_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with writing(path) as service:
        service.answer("a")

        def work(change: LabelTransaction, _file: FeedbackFile) -> None:
            change.add(TrueLabel("a", 0, "3"))
            move_all(path)

        with pytest.raises(FeedbackUnavailableError) as raised:
            service.writer.submit(work, LABEL_BYTES).result(TIMEOUT_SECONDS)
        check_sentence(str(raised.value), "… was moved while it was written; send it again.")


def test_file_that_is_damaged_while_it_is_open_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with writing(path) as service:
        service.answer("a")
        service.label("a")
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        damage(path)
        with pytest.raises(FeedbackUnavailableError) as raised:
            service.label("a", "5")
        check_sentence(str(raised.value), "… is damaged, or no feedback file (…); move it away …")


def test_file_is_judged_without_being_created_or_changed(tmp_path: Path) -> None:
    path = tmp_path / "feed?back#1.db"
    assert why_unusable(path) is None
    assert not path.exists()
    path.touch()
    assert why_unusable(path) is None
    with writing(path) as service:
        service.answer("a")
        assert service.label("a").outcome == "added"
        assert why_unusable(path) is None
    before = path.read_bytes()
    assert why_unusable(path) is None
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_answer_that_cannot_be_encoded_does_not_end_the_thread(tmp_path: Path) -> None:
    def fail() -> bytes:
        raise RuntimeError("an answer of which nothing was expected")

    with writing(tmp_path / "feedback.db") as service:
        service.writer.note(AnswerRecord(0.0, "odd", VERSION, fail), 1000)
        with pytest.raises(FeedbackUnavailableError, match="see the log"):
            service.label("odd")
        service.answer("a")
        assert service.label("a").outcome == "added"


def test_answers_beyond_the_memory_limit_are_dropped_and_counted(tmp_path: Path) -> None:
    service = Writing(tmp_path / "feedback.db")
    for _ in range(3):
        service.writer.note(AnswerRecord(0.0, "big", VERSION, ANSWER.to_bytes), 2**23)
    assert service.metric("dropserve_feedback_answers_total", outcome="dropped") == 1


def test_label_of_an_answer_that_found_no_room_is_told_that_it_may_be_lost(tmp_path: Path) -> None:
    service = Writing(tmp_path / "feedback.db")
    for request_id in ("kept", "lost"):
        service.writer.note(AnswerRecord(0.0, request_id, VERSION, ANSWER.to_bytes), 2**23 + 1)
    service.writer.start()
    try:
        assert service.label("kept").outcome == "added"
        with pytest.raises(FeedbackUnavailableError) as raised:
            service.label("lost")
        check_sentence(str(raised.value), "The answer to a request 'lost' may be lost, …")
        with pytest.raises(UnknownAnswerError):
            service.label("never answered")
    finally:
        service.writer.close()


def test_who_has_gone_does_not_keep_others_from_their_result(tmp_path: Path) -> None:
    service = Writing(tmp_path / "feedback.db")
    service.answer("a")
    gone = service.writer.submit(lambda change, _: change.add(TrueLabel("a", 0, "3")), 1)
    assert gone.cancel()
    service.writer.start()
    try:
        assert service.label("a").outcome == "unchanged", "it was stored all the same"
    finally:
        service.writer.close()


def test_closing_writes_what_waits(tmp_path: Path) -> None:
    with writing(tmp_path / "feedback.db") as service:
        service.answer("a")
    with writing(tmp_path / "feedback.db") as service:
        assert service.label("a").outcome == "added"


def test_future_can_be_awaited(tmp_path: Path) -> None:
    async def label(service: Writing) -> LabelledAnswer:
        future = service.writer.submit(lambda change, _: change.add(TrueLabel("a", 1, "9")), 1)
        return await asyncio.wrap_future(future)

    with writing(tmp_path / "feedback.db") as service:
        service.answer("a")
        assert asyncio.run(label(service)).predicted == "4"
