"""Dashboard, rules, alerts' page and compose file agree with each other and with /metrics."""

import json
import re
from typing import Any

import pytest
import yaml

from deploy.monitoring.dashboard import FILE, dashboard_json
from deploy.monitoring.prometheus_rule import FILE as FILE_OF_RULES
from deploy.monitoring.prometheus_rule import prometheus_rule
from service.observability.metrics_recorder import Metrics
from tests.conftest import ROOT
from tests.monitoring.alert_cases import CASES
from tests.monitoring.monitoring_files import MONITORING, alerts, groups, metric_names, rules

ALERTS_PAGE = (ROOT / "docs" / "alerts.md").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = [each for each in COMPOSE["services"] if "profiles" in COMPOSE["services"][each]]


def dashboard_queries() -> list[str]:
    panels = json.loads(FILE.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_dashboard_file_is_what_its_source_makes() -> None:
    assert FILE.read_text() == dashboard_json(), "run python -m deploy.monitoring.dashboard"


def test_object_for_the_prometheus_operator_has_the_groups_of_the_rule_files() -> None:
    assert FILE_OF_RULES.read_text() == prometheus_rule(), (
        "run python -m deploy.monitoring.prometheus_rule"
    )
    assert yaml.safe_load(FILE_OF_RULES.read_text())["spec"]["groups"] == groups()


def test_panels_of_the_dashboard_have_ids_of_their_own_and_do_not_overlap() -> None:
    panels = json.loads(FILE.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)


def test_rules_and_dashboard_read_metrics_that_exist() -> None:
    exposed = set(re.findall(r"^# TYPE (\S+)", Metrics().render().decode(), re.MULTILINE))
    parts = {f"{name}_{part}" for name in exposed for part in ("bucket", "sum", "count")}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    read = {
        name
        for expression in [*(rule["expr"] for rule in rules()), *dashboard_queries()]
        for name in metric_names(expression)
    }
    assert read - exposed - parts - recorded == {"up"}
    assert recorded <= read, "a recorded figure that nothing reads"


def test_alerts_page_has_every_alert_and_no_other() -> None:
    written = re.findall(r"^## (Dropserve\w+)$", ALERTS_PAGE, re.MULTILINE)
    assert written == list(alerts())
    assert set(CASES) == set(alerts())


@pytest.mark.parametrize("name", alerts())
def test_alert_says_how_severe_it_is_what_happens_and_what_to_do(name: str) -> None:
    rule = alerts()[name]
    section = ALERTS_PAGE.split(f"## {name}\n")[1].split("\n## ")[0]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert f"*{rule['labels']['severity']}*" in section
    assert rule["annotations"]["summary"].endswith(".")
    assert rule["annotations"]["runbook"].endswith(f". docs/alerts.md#{name.lower()}")
    assert "**What to do.**" in section


@pytest.mark.parametrize("name", SERVICES)
def test_monitoring_service_is_confined_and_pinned_and_for_this_machine_alone(name: str) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    assert service["profiles"] == ["monitoring"]
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    for volume in service["volumes"]:
        source = volume.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_scrape_and_data_source_name_services_of_the_compose_file() -> None:
    assert SERVICES == ["prometheus", "grafana"]
    (scrape,) = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["job_name"] == "dropserve"
    assert scrape["static_configs"] == [{"targets": ["service:8000"]}]
    provisioning = MONITORING / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dropserve.yml").read_text())[
        "providers"
    ]
    folder = provider["options"]["path"]
    assert any(f":{folder}:" in each for each in COMPOSE["services"]["grafana"]["volumes"])
