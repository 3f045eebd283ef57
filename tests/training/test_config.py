"""Options of a training that change when they are read; options of an evaluation with two names."""

from pathlib import Path

import pytest

from model.cli_and_env_settings import load
from training.config import TrainingConfig
from training.data_options import check_data_name
from training.evaluation_config import EvaluationConfig


@pytest.mark.parametrize("flag", ["--ood", "--strangers"])
def test_evaluation_config_reads_ood_from_both_flags(flag: str, tmp_path: Path) -> None:
    assert load(EvaluationConfig, [str(tmp_path), flag, "mnist"]).ood == "mnist"
    assert load(EvaluationConfig, [str(tmp_path), f"{flag}=mnist"]).ood == "mnist"


@pytest.mark.parametrize("name", ["OOD", "STRANGERS"])
def test_evaluation_config_reads_ood_from_both_environment_variables(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "kmnist")  # without the prefix it is another program's
    assert load(EvaluationConfig, [str(tmp_path)]).ood is None
    monkeypatch.setenv(f"DROPSERVE_EVALUATION_{name}", "mnist")
    assert load(EvaluationConfig, [str(tmp_path)]).ood == "mnist"
    assert load(EvaluationConfig, [str(tmp_path), "--ood", "digits"]).ood == "digits"


@pytest.mark.parametrize("key", ["ood", "strangers"])
def test_evaluation_config_reads_ood_from_both_keys_of_a_file(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "evaluation.toml"
    file.write_text(f'{key} = "mnist"\n')
    arguments = [str(tmp_path), "--config", str(file)]
    assert load(EvaluationConfig, arguments).ood == "mnist"
    for flag in ("--ood", "--strangers"):
        assert load(EvaluationConfig, [*arguments, flag, "digits"]).ood == "digits"
    monkeypatch.setenv("DROPSERVE_EVALUATION_STRANGERS", "kmnist")
    assert load(EvaluationConfig, arguments).ood == "kmnist"


def test_folder_below_the_home_of_the_user_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pets").mkdir()
    config = load(TrainingConfig, ["--data", "folder:~/pets"])
    assert config.data == f"folder:{tmp_path / 'pets'}"
    assert config.model_name == "pets"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("~/none", "there is no folder"),
        ("~nobody-of-this-name/pets", "cannot be used"),
        ("a" * 300, "there is no folder|cannot be used"),
        ("", "names no folder; write folder:PATH"),
    ],
)
def test_folder_that_cannot_be_used_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        check_data_name(f"folder:{name}")


def test_limit_on_pixels_is_given_in_megapixels() -> None:
    assert load(TrainingConfig, []).max_pixels == 250_000_000
    assert load(TrainingConfig, ["--max-image-megapixels", "0.5"]).max_pixels == 500_000
