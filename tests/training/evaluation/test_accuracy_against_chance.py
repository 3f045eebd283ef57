"""A number of right answers is judged by how often guesses would have as many."""

import pytest

from training.evaluation.accuracy_against_chance import RightAnswers


@pytest.mark.parametrize(
    ("counts", "beats"),
    [
        ([[40, 10], [10, 40]], True),
        ([[26, 24], [23, 27]], False),
        ([[90, 0], [10, 0]], False),  # always the commonest class
        ([[1, 0], [1, 0]], False),
        ([[2, 0], [0, 1]], False),  # all right, but of three images only
        ([[10, 0], [0, 10]], True),
    ],
)
def test_network_beats_guessing_only_where_guesses_are_rarely_as_good(
    counts: list[list[int]], beats: bool
) -> None:
    answers = RightAnswers.of_counts(counts)
    assert answers.beats_guessing == beats
    assert (answers.remark is None) == beats
    low, high = answers.interval
    assert 0 <= low <= answers.right / answers.images <= high <= 1


def test_remark_says_how_good_a_guess_would_be() -> None:
    remark = RightAnswers.of_counts([[60, 0], [40, 0]]).remark
    assert remark is not None
    assert "as far as 100 test images can tell: 60.0% are right, and 60.0% would be" in remark
