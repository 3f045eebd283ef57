"""The options of `python -m training.evaluate` that have two names."""

from pathlib import Path

import pytest

from model.cli_and_env_settings import load
from training.config import EvaluationConfig


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
