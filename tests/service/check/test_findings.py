import json

import pytest

from service.check.findings import Finding, error, exit_status, fine, to_json, to_lines, warning

FINDINGS = [fine("port", "Free."), error("models", "None."), warning("keys", "Old.")]


@pytest.mark.parametrize(
    ("findings", "status"),
    [([], 0), (FINDINGS[:1], 0), ([FINDINGS[0], FINDINGS[2]], 1), (FINDINGS, 2)],
)
def test_exit_status_is_that_of_the_worst_finding(findings: list[Finding], status: int) -> None:
    assert exit_status(findings) == status


def test_lines_and_json_have_the_same_findings_errors_first() -> None:
    assert to_lines(FINDINGS) == (
        "error    models: None.\nwarning  keys: Old.\nfine     port: Free.\n"
    )
    assert json.loads(to_json(FINDINGS)) == {
        "status": 2,
        "findings": [
            {"level": "error", "subject": "models", "sentence": "None."},
            {"level": "warning", "subject": "keys", "sentence": "Old."},
            {"level": "fine", "subject": "port", "sentence": "Free."},
        ],
    }
