"""The docs are held true: every route, error code, setting, metric and file is in them."""

import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from model.settings import CommandSettings
from service.api.routes import NamedRoute
from service.app import create_app
from service.control import ControlSettings
from service.errors import HTTP_CODES, INTERNAL_CODE, ROUTING_CODES, STATUS_AND_CODE
from service.observability.metrics import Metrics
from service.settings import ServiceSettings
from tests.differential.cases import CASES
from tests.differential.differences import EXPLAINED
from training.config import EvaluationConfig, TrainingConfig
from training.experiments.settings import ExperimentName, ExperimentSettings

ROOT = Path(__file__).parent.parent
API = (ROOT / "docs" / "http-api.md").read_text()
PROTOCOLS = (ROOT / "docs" / "open-inference.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
README = (ROOT / "README.md").read_text()


def test_every_route_is_documented_and_no_other() -> None:
    described = create_app(ServiceSettings()).openapi()["paths"]
    routes = {
        f"{method.upper()} {path}"
        for path, each in described.items()
        for method in each
        if not path.startswith(("/v1", "/v2"))
    }
    table = API.split("## Sending images")[0]
    written = set(re.findall(r"`((?:GET|POST) /[a-z/{}]*)`", table))
    assert written == routes | {"GET /docs"}


def test_every_route_of_the_protocols_is_documented_and_no_other() -> None:
    app = create_app(ServiceSettings())
    routes = {
        f"{method} {route.path}"
        for route in app.routes
        if isinstance(route, NamedRoute)
        and route.path.startswith("/v")
        and "/versions/" not in route.path
        for method in (route.methods or set()) - {"HEAD"}
    }
    written = set(re.findall(r"`((?:GET|POST) /v[12][a-z0-9/{}:]*)`", PROTOCOLS))
    assert written == routes - {"GET /v2/"}


def test_every_difference_from_triton_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| .* \| `.*` \| `.*` \| `.*` \| (.*) \|$", PROTOCOLS, re.MULTILINE)
    assert rows == [each.why for each in EXPLAINED]
    assert f"sends {len(CASES)} requests" in PROTOCOLS


def test_every_error_code_is_documented_with_its_status_and_no_other() -> None:
    rows = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", API, re.MULTILINE))
    codes = {(str(status), code) for status, code in STATUS_AND_CODE.values()}
    codes |= {(str(status), code) for status, code in (ROUTING_CODES | HTTP_CODES).items()}
    assert rows == codes | {("500", INTERNAL_CODE)}


def test_every_metric_is_documented_and_no_other() -> None:
    exposed = Metrics().expose().decode()
    names = set(re.findall(r"^# HELP (dropserve_\S+)", exposed, re.MULTILINE))
    assert set(re.findall(r"^\| `(dropserve_\w+)` \|", API, re.MULTILINE)) == names


PROGRAMS: tuple[type[CommandSettings], ...] = (
    ServiceSettings,
    ControlSettings,
    TrainingConfig,
    EvaluationConfig,
    ExperimentSettings,
)
POSITIONAL = {"experiment", "bundle", "action", "model"}


def flags(settings: type[CommandSettings]) -> dict[str, FieldInfo]:
    """The fields that are flags."""
    return {name: each for name, each in settings.model_fields.items() if name not in POSITIONAL}


@pytest.mark.parametrize("settings", PROGRAMS)
def test_every_setting_is_documented_with_its_default(settings: type[CommandSettings]) -> None:
    prefix = settings.model_config["env_prefix"]
    for name, field in flags(settings).items():
        default = "" if field.default in (None, PydanticUndefined) else f"`{field.default}`"
        row = f"| `--{name.replace('_', '-')}` | `{prefix}{name.upper()}` | {default} |"
        assert row.replace("|  |", "| |") in CONFIGURATION
        assert (field.description or "?").replace("|", "\\|") in CONFIGURATION


def test_no_setting_is_documented_that_is_not_there() -> None:
    written = set(re.findall(r"^\| `--([a-z-]+)` \|", CONFIGURATION, re.MULTILINE))
    assert written == {name.replace("_", "-") for each in PROGRAMS for name in flags(each)}


def test_every_experiment_is_documented() -> None:
    for name in get_args(ExperimentName):
        assert f"`{name}`" in CONFIGURATION.split("python -m training.experiments NAME")[1]


def test_the_architecture_names_every_module_and_no_other() -> None:
    modules = {
        str(file.relative_to(ROOT))
        for package in ("model", "training", "service")
        for file in (ROOT / package).rglob("*.py")
        if file.name != "__init__.py"
    }
    assert set(re.findall(r"^\| `((?:\w+/)+\w+\.py)` \|", ARCHITECTURE, re.MULTILINE)) == modules


@pytest.mark.parametrize("document", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
def test_every_link_inside_the_project_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_readme_names_make_targets_that_exist_and_the_two_first_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE))
    assert named <= targets
    assert {"serve", "test"} <= named


@pytest.mark.parametrize("document", sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")]))
def test_no_document_has_a_hole(document: Path) -> None:
    assert not re.search(r"@@|\bTODO\b|\bTBD\b", document.read_text())
