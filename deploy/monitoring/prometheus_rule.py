"""Puts the rules into an object: `python -m deploy.monitoring.prometheus_rule` writes its YAML.

The Prometheus operator reads rules from objects of the cluster, not from files, and kustomize can
put no file into the middle of an object. Knows no rule.
"""

import textwrap
from pathlib import Path

_MONITORING = Path(__file__).parent
_RULES = (_MONITORING / "rules" / "recording.yml", _MONITORING / "rules" / "alerts.yml")
FILE = _MONITORING.parent / "kubernetes" / "components" / "monitoring" / "prometheus-rule.yaml"
_HEAD = """\
# Written by `python -m deploy.monitoring.prometheus_rule`; change deploy/monitoring/rules/.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: dropserve
  labels:
    app.kubernetes.io/name: dropserve
spec:
  groups:
"""


def prometheus_rule() -> str:
    """Return the object's YAML, with the groups of every file of rules."""
    groups = (file.read_text().partition("groups:\n")[2] for file in _RULES)
    return _HEAD + textwrap.indent("\n".join(groups), "  ")


if __name__ == "__main__":
    FILE.write_text(prometheus_rule())
