"""What ends a command of the package `training`, and with which sentence."""

import errno
import os

import pytest

from training.command_exit_status import run_command


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/a/1.jpeg"),
            "/a/1.jpeg cannot be read or written (No such file or directory)",
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
            "A file cannot be read or written (No space left on device)",
        ),
    ],
)
def test_command_reports_a_file_that_fails_in_one_sentence(
    error: OSError, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_command(fail, "Interrupted.") == 2
    assert capsys.readouterr().err == f"{told}; free space, or name another folder.\n"
