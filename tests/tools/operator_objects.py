"""Write the Prometheus Operator's objects of docs/deploy/operator from Prometheus' and Alertmanager's own files."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml

from tests.kit.cluster import NAMESPACE
from tests.kit.programs import DEPLOY

RULES = DEPLOY / "prometheus" / "rules.yaml"
ALERTMANAGER = DEPLOY / "alertmanager.yaml"
_HEAD = """\
# Written from {plain} by `make operator`: change that file.
apiVersion: monitoring.coreos.com/{version}
kind: {kind}
metadata:
  name: runbook
  namespace: {namespace}
spec:
"""


def rule() -> str:
    """Return the rules as a PrometheusRule.

    An AlertmanagerConfig gets the alerts of its own namespace only: those for the receiver name it in a label.
    """
    groups = RULES.read_text(encoding="utf-8").partition("groups:\n")
    labelled = re.sub(r"( +)runbook_target: .*\n", rf"\g<0>\1namespace: {NAMESPACE}\n", groups[1] + groups[2])
    return _head("prometheus/rules.yaml", "v1", "PrometheusRule") + textwrap.indent(labelled, "  ")


def alertmanager_config() -> str:
    """Return the route and the receiver `runbook` as an AlertmanagerConfig; people are reached by the company's own."""
    plain = yaml.safe_load(ALERTMANAGER.read_text(encoding="utf-8"))
    (route,) = [r for r in plain["route"]["routes"] if r["receiver"] == "runbook"]
    (receiver,) = [r for r in plain["receivers"] if r["name"] == "runbook"]
    matchers = [re.split(r" (=~|!~|!=|=) ", m) for m in route["matchers"]]
    route |= {k: v for k, v in plain["route"].items() if k.startswith(("group_", "repeat_"))}
    route["matchers"] = [{"name": n, "match_type": how, "value": v.strip('"')} for n, how, v in matchers]
    del route["continue"]  # the operator adds it
    for hook in receiver["webhook_configs"]:
        authorization = hook["http_config"]["authorization"]
        *_, secret, key = Path(authorization.pop("credentials_file")).parts
        authorization["credentials"] = {"name": secret, "key": key}
    body = yaml.safe_dump({"route": _camel(route), "receivers": [_camel(receiver)]}, sort_keys=False)
    return _head("alertmanager.yaml", "v1alpha1", "AlertmanagerConfig") + textwrap.indent(body, "  ")


def _head(plain: str, version: str, kind: str) -> str:
    return _HEAD.format(plain=plain, version=version, kind=kind, namespace=NAMESPACE)


def _camel(value: Any) -> Any:
    """Return the value with each key as the operator writes it: group_by is groupBy."""
    if isinstance(value, dict):
        return {re.sub(r"_(\w)", lambda m: m[1].upper(), key): _camel(inner) for key, inner in value.items()}
    return [_camel(inner) for inner in value] if isinstance(value, list) else value


WRITTEN = {DEPLOY / "operator" / "rules.yaml": rule, DEPLOY / "operator" / "alertmanager.yaml": alertmanager_config}

if __name__ == "__main__":
    for path, text in WRITTEN.items():
        path.write_text(text(), encoding="utf-8")
