"""promtool examines the configuration, the rules and /metrics, and tries every alert."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bundles import copy_bundle
from tests.monitoring.alert_cases import CASES, NO_INSTANCE_IS_LEFT, ORDINARY, Case
from tests.monitoring.monitoring_files import MONITORING, RULES, alerts, promtool
from tests.pictures import Pixels, encode
from tests.service.process import service_process
from tests.service.serving import PNG

pytestmark = pytest.mark.prometheus

HOUR = 60


def test_promtool_accepts_configuration_and_rules() -> None:
    assert "SUCCESS" in promtool("check", "config", str(MONITORING / "prometheus.yml"))
    promtool("check", "rules", "--lint-fatal", *map(str, RULES.glob("*.yml")))


def test_every_alert_fires_for_its_cause_after_its_time_and_no_other_does(tmp_path: Path) -> None:
    causes = [*CASES.items(), ("DropserveDown", NO_INSTANCE_IS_LEFT)]
    tests = [_case_test(name, case) for name, case in causes]
    _test_rules(tests, tmp_path)


def test_every_alert_is_quiet_in_each_minute_of_an_ordinary_hour(tmp_path: Path) -> None:
    quiet = [_expectation(name, minute) for name in alerts() for minute in range(HOUR + 1)]
    _test_rules([{**_input(ORDINARY), "alert_rule_test": quiet}], tmp_path)


@pytest.mark.parametrize("workers", [1, 2])
def test_promtool_accepts_the_real_metrics(
    bundle_folder: Path, digit: Pixels, tmp_path: Path, workers: int
) -> None:
    copy_bundle(bundle_folder, tmp_path)
    copy_bundle(bundle_folder, tmp_path, version=2)
    (tmp_path / "digits" / "2" / "model.onnx").write_bytes(b"damaged")
    with service_process(tmp_path, "--workers", str(workers)) as service, service.client() as http:
        for route in ("/predict", "/uncertainty", "/nothing"):
            http.post(route, content=encode(digit), headers=PNG)
        deadline = time.monotonic() + 60
        while True:
            text = http.get("/metrics").text
            if "dropserve_refused_version{" in text and "dropserve_typicality_count{" in text:
                break
            assert time.monotonic() < deadline, text
    assert promtool("check", "metrics", standard_input=text) == ""
    assert text.count("\nprocess_resident_memory_bytes{") == workers
    assert text.count("\ndropserve_build_info{") == 1


def _case_test(name: str, case: Case) -> dict[str, Any]:
    series = {key: samples for key, samples in ORDINARY.items() if key not in case.without}
    rule = alerts()[name]
    fired = {
        "exp_labels": {"job": "dropserve", "severity": rule["labels"]["severity"], **case.labels},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    expected = [_expectation(other, case.firing_minute) for other in alerts() if other != name]
    expected.append(_expectation(name, case.quiet_minute))
    expected.append(_expectation(name, case.firing_minute, fired))
    return {**_input(series | case.cause), "name": name, "alert_rule_test": expected}


def _input(series: dict[str, str]) -> dict[str, Any]:
    samples = [{"series": name, "values": values} for name, values in series.items()]
    return {"interval": "1m", "input_series": samples}


def _expectation(name: str, minute: int, *fired: dict[str, Any]) -> dict[str, Any]:
    return {"alertname": name, "eval_time": f"{minute}m", "exp_alerts": list(fired)}


def _test_rules(tests: list[dict[str, Any]], folder: Path) -> None:
    files = [str(file) for file in RULES.glob("*.yml")]
    content = {"rule_files": files, "evaluation_interval": "15s", "tests": tests}
    file = folder / "tests.yml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    assert "SUCCESS" in promtool("test", "rules", str(file))
