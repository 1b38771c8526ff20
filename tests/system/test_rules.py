"""The alerting rules: promtool's own tests, and that every alert leads somewhere in the runbook.

The chain that is checked: metric -> rule -> route of docs/deploy/runbook.toml -> section -> notebook.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from runbook_lib.book import catalog, parameters
from runbook_lib.notebook import writer
from runbook_lib.packs.entitlement import PACK
from runbook_lib.sources.settings import Route
from tests.kit.programs import DEPLOY, tool
from tests.tools import operator_objects

RULES = DEPLOY / "prometheus" / "rules.yaml"
RULES_TEST = DEPLOY / "prometheus" / "rules_test.yaml"
BOOK = catalog.load()


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


ALERTS = alerts()
NAMES = [a["alert"] for a in ALERTS]
#: The alerts about the system, which the receiver gets; people get those about the runbook itself.
ABOUT_SYSTEM = [a for a in ALERTS if not a["alert"].startswith("Runbook")]
TESTS = yaml.safe_load(RULES_TEST.read_text(encoding="utf-8"))["tests"]
ROUTES = [Route(**r) for r in tomllib.loads((DEPLOY / "runbook.toml").read_text(encoding="utf-8"))["routes"]]


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr


def promtool(*arguments: str) -> None:
    run(tool("promtool", "RUNBOOK_REQUIRE_PROMTOOL", "promtool"), *arguments)


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint-fatal", str(RULES))


@pytest.mark.slow
def test_promtool_runs_their_tests() -> None:
    promtool("test", "rules", str(RULES_TEST))


def test_amtool_accepts_the_example() -> None:
    amtool = tool("amtool", "RUNBOOK_REQUIRE_ALERTMANAGER", "prometheus-alertmanager")
    run(amtool, "check-config", str(DEPLOY / "alertmanager.yaml"))


def test_the_operators_objects_are_those_of_the_plain_files() -> None:
    for path, text in operator_objects.WRITTEN.items():
        assert path.read_text(encoding="utf-8") == text(), "run `make operator`"
    config, rule = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(operator_objects.WRITTEN))
    labels = [r["labels"] for g in rule["spec"]["groups"] for r in g["rules"] if "alert" in r]
    # What the receiver gets is what the operator's own matcher lets through.
    assert all(own.get("namespace") == config["metadata"]["namespace"] for own in labels if "runbook_target" in own)


def fired(test: dict[str, Any]) -> list[set[str]]:
    """The alerts that fire, for each moment that a test looks at."""
    return [
        {name for s in look["exp_samples"] for name in re.findall(r'alertname="(\w+)"', s["labels"])}
        for look in test["promql_expr_test"]
    ]


@pytest.mark.parametrize("alert", NAMES)
def test_each_rule_is_tested_firing_and_quiet(alert: str) -> None:
    own = {word: [t for t in TESTS if t["name"].startswith(f"{alert} {word}: ")] for word in ("fires", "is quiet")}
    assert own["fires"] and own["is quiet"]
    assert all(alert in names for t in own["fires"] for names in fired(t))
    # Not merely an empty world: a quiet case has a series of what the rule looks at.
    assert all(alert not in names for t in own["is quiet"] for names in fired(t))
    looked_at = {r for a in ALERTS if a["alert"] == alert for r in metrics(a["expr"])}
    assert all(looked_at & {s["series"].partition("{")[0] for s in t["input_series"]} for t in own["is quiet"])


def metrics(expr: str) -> set[str]:
    """The exported series of an expression, those of recording rules included."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    recorded = {r["record"]: r["expr"] for g in groups for r in g["rules"] if "record" in r}
    for name, inner in recorded.items():
        expr = expr.replace(name, inner)
    return set(re.findall(r"\b(?:up\b|[a-z]+_[a-z0-9_]+)(?=[{\[\s),]|$)", expr)) - {"last_over_time", "label_replace"}


def test_the_tests_name_existing_alerts_only() -> None:
    named = {t["name"].partition(" ")[0] for t in TESTS} - {"all"}
    assert named == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_says_what_and_where(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["labels"].get("slo", "ENT-A") in BOOK.slos
    # alertmanager.yaml sends the receiver nothing else.
    assert alert["labels"].get("runbook_target") == ("default" if alert in ABOUT_SYSTEM else None)
    assert set(alert["annotations"]) == {"summary", "summary_ja", "runbook_url"}
    assert re.search(r"[ぁ-んァ-ヶ一-龠]", alert["annotations"]["summary_ja"])
    assert not re.search(r"[ぁ-んァ-ヶ一-龠]", alert["annotations"]["summary"])


@pytest.mark.parametrize("alert", ABOUT_SYSTEM, ids=lambda a: a["alert"])
def test_an_alert_points_to_the_section_that_it_runs(alert: dict[str, Any]) -> None:
    url = urlsplit(alert["annotations"]["runbook_url"])
    (route,) = [r for r in ROUTES if r.alertname == alert["alert"]]
    links = writer._links(PACK, "runbook", route.sections)
    assert f"..{url.path}#{unquote(url.fragment)}" == links[route.sections[0]]


def test_every_route_is_an_alert_and_can_be_run() -> None:
    assert {r.alertname for r in ROUTES} == {a["alert"] for a in ABOUT_SYSTEM}
    for route in ROUTES:
        for number in route.sections:
            notebook = BOOK.runnable()[number].notebook
            assert notebook
            names = parameters.declared_names(notebook)
            assert "execute" not in names, f"{route.alertname} would open {number}, which can act"
            parameters.validate({"target": "default"} | route.parameters, names)


def test_thresholds_of_the_rules_are_those_of_the_documents() -> None:
    text = {a["alert"]: a["expr"] for a in ALERTS}
    fast, slow = BOOK.limits["burn.fast"].critical, BOOK.limits["burn.slow"].warning
    for alert, slo in (("EntitlementErrorBudget", "ENT-A"), ("NotificationErrorBudget", "NOTI-A")):
        allowed = f"{1 - BOOK.slos[slo].number / 100:.4g}"
        assert text[f"{alert}Fast"].count(f"> {fast:g} * {allowed}") == 2
        assert text[f"{alert}Slow"].count(f"> {slow:g} * {allowed}") == 2
    for alert, rate in (("EntitlementLatencyBudgetFast", fast), ("EntitlementLatencyBudgetSlow", slow)):
        assert rate
        assert text[alert].count(f"histogram_quantile({1 - rate * 0.05:g}, ") == 2
        assert text[alert].count(f"> {BOOK.slos['ENT-B'].number:g}\n") == 2
    assert text["EntitlementPublishSlow"].strip().endswith(f"> {BOOK.slos['ENT-C'].number:g}")
    assert text["NotificationDelay"].strip().endswith(f"> {BOOK.slos['NOTI-B'].number:g}")
    assert f"notification_backlog_current >= {BOOK.slos['NOTI-C'].number:g} " in text["NotificationBacklog"]
    assert f"> {(BOOK.limits['errors.rate'].critical or 0) / 100:g}\n" in text["NotificationRetries"]
