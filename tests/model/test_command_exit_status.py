"""What ends a command, and with which sentence and exit status."""

import errno
import os

import pytest

from model.command_exit_status import run_command
from model.errors import DataError
from tests.service.serving import check_sentence


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/1.jpeg"),
            2,
            "/a/1.jpeg cannot be read or written (No such file or directory); free space, or …",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            2,
            "A file cannot be read or written (No space left on device); free space, or …",
        ),
        (DataError("The image is damaged; get it again."), 2, "The image is damaged; …"),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
    ],
)
def test_command_that_is_stopped_says_why_in_one_sentence(
    error: BaseException, status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> int:
        raise error

    assert run_command(fail, "Interrupted; nothing was written.") == status
    check_sentence(capsys.readouterr().err.removesuffix("\n"), told)


def test_command_that_is_not_stopped_ends_with_its_own_exit_status() -> None:
    assert run_command(lambda: 1, "Interrupted.") == 1
