"""Tests that the docs name every route, error code, setting, metric and file, and no other."""

import re
from pathlib import Path
from typing import get_args

import pytest
from fastapi.routing import APIRoute
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from model.cli_and_env_settings import CommandSettings
from service.app import create_app
from service.check.check_settings import CheckSettings
from service.control.rollout_client import ControlSettings
from service.errors import (
    HTTP_PROTOCOL_CODES,
    HTTPS_REQUIRED,
    INTERNAL_CODE,
    ROUTING_CODES,
    STATUS_AND_CODE,
)
from service.feedback.feedback_settings import FeedbackSettings
from service.keys.key_command import KeySettings
from service.observability.metrics_recorder import Metrics
from service.replay.replay_settings import ReplaySettings
from service.scoring.score_settings import ScoreSettings
from service.settings import ServiceSettings
from tests.differential.cases import CASES
from tests.differential.differences import EXPLANATIONS
from training.adoption.adoption_config import AdoptionConfig
from training.config import TrainingConfig
from training.evaluation_config import EvaluationConfig
from training.experiments.settings import ExperimentName, ExperimentSettings
from training.migrate_bundle import MigrationConfig
from training.selection.selection_config import SelectionConfig

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "http-api.md").read_text()
PROTOCOLS = (ROOT / "docs" / "open-inference.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
README = (ROOT / "README.md").read_text()


def test_http_api_lists_every_native_route_and_no_other() -> None:
    described = create_app(ServiceSettings(feedback=Path("feedback.db"))).openapi()["paths"]
    routes = {
        f"{method.upper()} {path}"
        for path, each in described.items()
        for method in each
        if not path.startswith(("/v1", "/v2"))
    }
    table = API.split("## Sending images")[0]
    written = set(re.findall(r"`((?:GET|POST) /[a-z/{}]*)`", table))
    assert written == routes | {"GET /docs", "GET /redoc"}


def test_open_inference_lists_every_protocol_route_and_no_other() -> None:
    app = create_app(ServiceSettings())
    routes = {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, APIRoute)
        and route.path.startswith("/v")
        and "/versions/" not in route.path
        for method in (route.methods or set()) - {"HEAD"}
    }
    written = set(re.findall(r"`((?:GET|POST) /v[12][a-z0-9/{}:]*)`", PROTOCOLS))
    assert written == routes - {"GET /v2/"}


def test_open_inference_lists_every_difference_from_triton_and_no_other() -> None:
    rows = re.findall(r"^\| .* \| `.*` \| `.*` \| `.*` \| (.*) \|$", PROTOCOLS, re.MULTILINE)
    assert rows == [each.why for each in EXPLANATIONS]
    assert f"sends {len(CASES)} requests" in PROTOCOLS


def test_http_api_lists_every_error_code_with_its_status_and_no_other() -> None:
    rows = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", API, re.MULTILINE))
    codes = {(str(status), code) for status, code in STATUS_AND_CODE.values()}
    codes |= {(str(status), code) for status, code in (ROUTING_CODES | HTTP_PROTOCOL_CODES).items()}
    codes.add((str(HTTPS_REQUIRED[0]), HTTPS_REQUIRED[1]))
    assert rows == codes | {("500", INTERNAL_CODE)}


def test_http_api_lists_every_prometheus_series_and_no_other() -> None:
    exposed = Metrics().render().decode()
    names = set(re.findall(r"^# HELP ((?:dropserve|process)_\w+)", exposed, re.MULTILINE))
    created = {name for name in names if name.endswith("_created")}
    written = re.findall(r"^\| `((?:dropserve|process)_\w+)` \|", API, re.MULTILINE)
    assert set(written) == names - created


PROGRAMS: tuple[type[CommandSettings], ...] = (
    ServiceSettings,
    CheckSettings,
    ControlSettings,
    KeySettings,
    FeedbackSettings,
    ScoreSettings,
    ReplaySettings,
    TrainingConfig,
    EvaluationConfig,
    AdoptionConfig,
    MigrationConfig,
    ExperimentSettings,
    SelectionConfig,
)
POSITIONAL = {"experiment", "file", "bundle", "action", "network", "paths", "folder"}


def flags(settings: type[CommandSettings]) -> dict[str, FieldInfo]:
    """Return the fields that are flags, not positional arguments."""
    positional = POSITIONAL | ({"model"} if settings is ControlSettings else set())
    return {name: each for name, each in settings.model_fields.items() if name not in positional}


@pytest.mark.parametrize("settings", PROGRAMS)
def test_configuration_lists_every_setting_with_its_default(
    settings: type[CommandSettings],
) -> None:
    prefix = settings.model_config["env_prefix"]
    for name, field in flags(settings).items():
        default = "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
        row = f"| `--{name.replace('_', '-')}` | `{prefix}{name.upper()}` | {default} |"
        assert row.replace("|  |", "| |") in CONFIGURATION
        assert (field.description or "?").replace("|", "\\|") in CONFIGURATION


def test_configuration_lists_no_unknown_setting() -> None:
    written = set(re.findall(r"^\| `--([a-z-]+)` \|", CONFIGURATION, re.MULTILINE))
    assert written == {name.replace("_", "-") for each in PROGRAMS for name in flags(each)}


def test_configuration_lists_every_experiment() -> None:
    for name in get_args(ExperimentName):
        assert f"`{name}`" in CONFIGURATION.split("python -m training.experiments NAME")[1]


def test_architecture_lists_every_module_and_no_other() -> None:
    modules = {
        str(file.relative_to(ROOT))
        for package in ("model", "training", "service")
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert set(re.findall(r"^\| `((?:\w+/)+\w+\.py)` \|", ARCHITECTURE, re.MULTILINE)) == modules


@pytest.mark.parametrize("document", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
def test_link_inside_the_project_leads_to_a_file(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def heading_anchors(document: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize(
    "document", sorted([ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/**/*.md")])
)
def test_link_to_a_heading_leads_to_one(document: Path) -> None:
    links = re.findall(r"\]\(([^):#]*)#([^)]+)\)", document.read_text())
    missing = [
        f"{file}#{anchor}"
        for file, anchor in links
        if anchor not in heading_anchors(document.parent / file if file else document)
    ]
    assert missing == []


def test_readme_names_existing_make_targets_and_the_two_first_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named <= targets
    assert {"serve", "test"} <= named


@pytest.mark.parametrize("document", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
def test_document_has_no_placeholder(document: Path) -> None:
    assert not re.search(r"@@|\bTODO\b|\bTBD\b", document.read_text())
