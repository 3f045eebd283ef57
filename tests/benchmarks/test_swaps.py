import pytest

from benchmarks.swaps import main


@pytest.mark.parametrize("swaps", ["0", "4", "5", "7", "-10"])
def test_number_of_swaps_that_does_not_fill_the_rounds_is_refused(
    swaps: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["one", "other", f"--swaps={swaps}", "--every=0.5"])
    assert "--swaps: write a multiple of 5" in capsys.readouterr().err
