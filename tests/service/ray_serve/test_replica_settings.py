from pathlib import Path

import pytest
import yaml

from model.errors import SettingsError
from service.ray_serve.replica_settings import load_settings
from tests.conftest import ROOT

MODELS = {"models_folder": "/srv/models"}


def test_arguments_are_the_settings_of_the_service() -> None:
    settings = load_settings({**MODELS, "default_samples": 32, "control_folder": "/srv/control"})

    assert settings.models_folder == Path("/srv/models")
    assert settings.default_samples == 32


def test_config_file_of_deploy_names_the_builder_and_settings_that_a_replica_follows() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "ray" / "dropserve.yaml").read_text())
    (application,) = config["applications"]

    module, _, name = application["import_path"].partition(":")
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()

    assert load_settings(application["args"]).control == "nobody"
    assert f"def {name}(" in source
    assert f'name="{application["deployments"][0]["name"]}"' in source
    assert config["http_options"]["host"] == "127.0.0.1"


def test_environment_and_file_count_where_no_argument_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "dropserve.toml"
    file.write_text("max_images = 7\ndefault_samples = 16\n")
    monkeypatch.setenv("DROPSERVE_DEFAULT_SAMPLES", "8")
    monkeypatch.setenv("DROPSERVE_HOST", "0.0.0.0")  # as the container image gives it

    settings = load_settings({**MODELS, "config": str(file)})

    assert (settings.max_images, settings.default_samples) == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({**MODELS, "workers": 2}, "workers: .*; give num_replicas or autoscaling_config"),
        ({**MODELS, "port": 9000}, "port: .*; give http_options to Serve"),
        ({**MODELS, "client_images_per_second": 5}, "limit them in a proxy before it"),
        ({**MODELS, "control_port": 8001}, "give control: anyone, or rollouts: FILE"),
        ({"models_folder": "models"}, "models_folder: 'models' is relative"),
        ({}, "models_folder: 'models' is relative"),
        ({**MODELS, "traffic_log": "log"}, "traffic_log: 'log' is relative"),
        ({**MODELS, "nothing": 1}, "--nothing is not an option"),
        ({**MODELS, "max_images": 0}, "--max-images: .* but got 0"),
        ({**MODELS, "config": "/no/file"}, "--config: cannot read /no/file"),
    ],
    ids=str,
)
def test_wrong_argument_is_refused_with_what_to_do(
    arguments: dict[str, object], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(arguments)


def test_setting_of_the_environment_that_a_replica_cannot_follow_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DROPSERVE_TLS_CERTIFICATE", "/srv/server.pem")
    monkeypatch.setenv("DROPSERVE_TLS_KEY", "/srv/server.key")

    with pytest.raises(SettingsError, match=r"tls_certificate: .*; give http_options to Serve"):
        load_settings(MODELS)
