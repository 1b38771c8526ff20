"""Alerts: what is read of a body that somebody else wrote, and where it leads."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.book.parameters import validate
from runbook_lib.model.incident import is_reserved
from runbook_lib.model.order import Order
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver import alert, routes
from runbook_lib.receiver.alert import Alert, BadAlert
from runbook_lib.sources.settings import Route, Settings
from runbook_lib.store.archive import NOTE, Archive
from tests.kit import ROOT
from tests.kit.command import runbook
from tests.kit.effort import examples
from tests.kit.schemas import valid, valid_dossier

GONE = {"database_url": "postgresql://u@127.0.0.1:1/x"}


def one(**changes: Any) -> dict[str, Any]:
    """An element of the webhook's `alerts`."""
    return {
        "status": "firing",
        "labels": {"alertname": "NotificationsLate"},
        "annotations": {"summary": "p99 is 45 s"},
        "startsAt": "2026-01-31T03:00:00.123Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://127.0.0.1/graph",
        "fingerprint": "a1b2c3",
    } | changes


def webhook(*alerts: Any, **changes: Any) -> bytes:
    body = {"version": "4", "groupKey": '{}:{alertname="NotificationsLate"}', "status": "firing", "receiver": "r"}
    return json.dumps(body | {"alerts": alerts or [one()]} | changes).encode()


def read_all(*alerts: Any) -> list[Alert]:
    return alert.from_alertmanager(webhook(*alerts))


def made(**changes: Any) -> Alert:
    return read_all(one(**changes))[0]


def test_a_webhook_is_read() -> None:
    (read,) = alert.from_alertmanager(webhook())
    assert (read.name, read.firing, read.fingerprint) == ("NotificationsLate", True, "a1b2c3")
    assert read.summary == "p99 is 45 s"
    assert read.starts_at == pd.Timestamp("2026-01-31T03:00:00.123Z")
    assert read.group == '{}:{alertname="NotificationsLate"}'


@pytest.mark.parametrize("time", ["1971-01-01T00:00:00Z", "9998-12-31T23:59:59Z", "9999-01-01T00:00:00+14:00"])
def test_a_time_that_is_read_is_one_that_a_run_accepts(time: str) -> None:
    validate(routes.detection_parameters(made(startsAt=time), ["3"]))


def test_without_a_fingerprint_the_labels_make_one() -> None:
    labels = {"alertname": "A", "pod": "p-1"}
    same = made(fingerprint="", labels=dict(reversed(labels.items())))
    assert made(fingerprint="", labels=labels).fingerprint == same.fingerprint != ""
    assert made(fingerprint="", labels=labels | {"pod": "p-2"}).fingerprint != same.fingerprint


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "body: "),
        (b"{", "body: "),
        (b"[" * 100_000, "body: "),
        (b"[]", "body: "),
        (b'{"version": "\xff"}', "body: "),
        (webhook(version="3"), "version"),
        (webhook(alerts=[]), "alerts"),
        (webhook(groupKey=""), "groupKey"),
        (webhook(one(status="pending")), "alerts.0.status"),
        (webhook(one(startsAt="yesterday")), "alerts.0.startsAt"),
        (webhook(one(startsAt="2026-01-31T03:00:00")), "alerts.0.startsAt"),
        (webhook(one(startsAt="0001-01-01T00:00:00Z")), "alerts.0.startsAt"),
        (webhook(one(startsAt="1969-12-31T23:00:00Z")), "alerts.0.startsAt"),
        (webhook(one(startsAt="1971-01-01T03:00:00+14:00")), "alerts.0.startsAt"),
        (webhook(one(startsAt="9999-12-31T23:59:59-14:00")), "alerts.0.startsAt"),
        (webhook(one(startsAt=f"2026-01-31T03:00:00.{'0' * 99}Z")), "alerts.0.startsAt"),
        (webhook(one(labels=["A"])), "alerts.0.labels"),
        (webhook("alert", 3, None), "alerts.0: "),
    ],
    ids=lambda value: value if isinstance(value, str) else "body",
)
def test_a_bad_body_is_one_line_that_names_the_field(body: bytes, said: str) -> None:
    with pytest.raises(BadAlert) as e:
        alert.from_alertmanager(body)
    assert said in str(e.value)
    assert "\n" not in str(e.value) and len(str(e.value)) < 400


NAMES = ["API/latency", "Disk (root) full", "5xx rate", "通知遅延", "../x", "{{ 7*7 }}", "x" * 128]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_prometheus_allows_are_read_and_are_no_path(name: str) -> None:
    labels = {"alertname": name, "service.name": "api", "a-b": "1", "__import__('os')": "x", "通知": "はい"}
    read = made(labels=labels)
    assert (read.name, read.labels) == (name, labels)
    incident = routes.incident_id([read], "main")
    validate({"incident_id": incident})
    assert re.fullmatch(r"[A-Za-z0-9-]{1,30}-20260131T030000-[0-9a-f]{8}", incident)


@pytest.mark.parametrize(
    ("sent", "read", "said"),
    [
        ({"query": "x" * 9000}, {"query": "x" * 1024}, "query"),
        ({"pod": "a\nb"}, {"pod": "a b"}, "pod"),
        ({"pod": "\u202ea\x1b[2J"}, {"pod": " a [2J"}, "pod"),
        ({"": "1", "a\nb": "1", "a" * 129: "1"}, {}, ", a b, aaa"),
        ({"shard": 3, "owner": None, "hosts": ["a"]}, {"shard": "3", "owner": "", "hosts": ""}, "hosts, owner, shard"),
        ({f"l{n}": "" for n in range(70)}, {f"l{n}": "" for n in range(70)}, ""),
        ({"alertname": "A\x1b[2J"}, {"alertname": "A [2J"}, "alertname"),
        ({"alertname": "x" * 129}, {"alertname": "x" * 128}, "alertname"),
        ({"alertname": " "}, {"alertname": "alert"}, "alertname"),
        ({"incident": "障害 2026-11"}, {"incident": "2026-11-5016faf6"}, "incident"),
        ({"incident": "../../etc"}, {"incident": "etc-74ccf3c5"}, "incident"),
        ({"incident": "障害"}, {"incident": "incident-988903db"}, "incident"),
        ({"incident": "latest"}, {"incident": "latest-5e1e2bca"}, "incident"),
        ({"incident": "Baseline-default"}, {"incident": "incident-Baseline-default-ade24ebe"}, "incident"),
        ({"incident": "baseline/x"}, {"incident": "incident-baseline-x-d2bcebee"}, "incident"),
        ({"incident": "ＬＡＴＥＳＴ"}, {"incident": "incident-6dfbd99e"}, "incident"),
        ({"incident": "adhoc."}, {"incident": "adhoc-dbf97128"}, "incident"),
        ({"incident": "NUL.txt"}, {"incident": "NUL-txt-0241e4ee"}, "incident"),
        ({"incident": "_x"}, {"incident": "x-a01e47cb"}, "incident"),
        ({"alertname": "Slow user_id=8f14e45f-ceea"}, {"alertname": "Slow user_id=***"}, "alertname"),
        ({"incident": "of bob@example.com"}, {"incident": "of-8ff2dd93"}, "incident"),
        ({"incident": " "}, {}, "incident"),
        ({"incident": "INC-1"}, {"incident": "INC-1"}, ""),
    ],
)  # fmt: skip
def test_a_label_refuses_no_alert(sent: dict[str, Any], read: dict[str, str], said: str, caplog: Any) -> None:
    labels = {"alertname": "A"} | sent
    found = made(labels=labels)
    assert found.labels == {"alertname": "A"} | read and found.name == found.labels["alertname"]
    incident = routes.incident_id([found], "main")
    validate({"incident_id": incident})
    assert not is_reserved(incident)
    assert (f"the incident {found.asked}," in found.line and incident in found.line) == bool(found.asked)
    assert bool(found.asked) == (sent.get("incident", " ").strip() not in ("", found.incident))
    logged = [line for line in caplog.messages if "labels are cleaned or left out: " in line]
    assert len(logged) == bool(said) and all(said in line for line in logged)


@pytest.mark.parametrize("changes", [{"annotations": {"summary": 3, "description": "late"}}, {"annotations": None}])
def test_a_field_that_is_not_used_refuses_no_alert(changes: dict[str, Any]) -> None:
    found = made(**changes)
    assert found.summary in ("late", "") and found.fingerprint == "a1b2c3"


@pytest.mark.parametrize("odd", ["<b>", "x" * 65, "disk 1"])
def test_a_fingerprint_of_another_form_still_tells_alerts_apart(odd: str) -> None:
    first, again, second = (made(fingerprint=name) for name in (odd, odd, f"{odd}."))
    assert first == again
    assert re.fullmatch("[0-9a-f]{16}", first.fingerprint) and first.fingerprint != second.fingerprint


def test_labels_that_differ_only_in_what_is_cut_are_two_alerts() -> None:
    labels = [{"alertname": "A", "query": "x" * 2000 + end, "shard": n} for n, end in enumerate("aab")]
    assert len({made(fingerprint="", labels=own).fingerprint for own in labels}) == 3


def test_every_alert_of_a_large_group_is_read() -> None:
    alerts = [one(fingerprint=str(n)) for n in range(2001)]
    assert len(read_all(*alerts)) == 2001
    assert len(alert.from_alertmanager(webhook(*alerts, groupKey="g" * 9000))) == 2001


def test_of_a_body_that_no_sender_means_not_everything_is_read(caplog: Any) -> None:
    assert len(read_all(one(), *[3] * (alert.MAX_ALERTS + 9))) == 1
    assert "alerts: 10 after the first 10000 are not read" in caplog.text


def test_an_alert_that_is_refused_holds_up_no_other_of_its_group() -> None:
    refused: list[str] = []
    bad = [one(startsAt="yesterday"), one(status="pending"), 3]
    body = webhook(bad[0], one(fingerprint="1"), bad[1], one(fingerprint="2"), bad[2])
    assert [a.fingerprint for a in alert.from_alertmanager(body, refused.append)] == ["1", "2"]
    fields = ["alerts.0.startsAt: ", "alerts.2.status: ", "alerts.4"]
    assert all(said.startswith(field) for said, field in zip(refused, fields, strict=True)), refused
    with pytest.raises(BadAlert, match=r"alerts\.0\.startsAt"):
        alert.from_alertmanager(webhook(*bad), refused.append)
    assert len(refused) == 3


def test_the_example_of_alertmanager_sends_no_more_alerts_than_are_read() -> None:
    deploy = ROOT / "docs" / "deploy" / "alertmanager.yaml"
    (sent,) = yaml.safe_load(deploy.read_text(encoding="utf-8"))["receivers"][0]["webhook_configs"]
    assert sent["max_alerts"] > 0
    assert sent["max_alerts"] * 2000 <= alert.MAX_BODY, "an alert of ours has less than 1000 bytes"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)


TIMES = st.sampled_from(["0001-01-01T00:00:00Z", "now", "today", "1e400", "NaT", "2026"]) | st.text()


@settings(max_examples=examples(300))
@given(
    st.binary(max_size=200)
    | JSON.map(lambda v: json.dumps(v).encode())
    | st.dictionaries(st.sampled_from(["version", "groupKey", "alerts"]), JSON).map(lambda v: webhook(**v))
    | st.dictionaries(st.sampled_from(sorted(one())), JSON).map(lambda v: webhook(one(**v)))
    | TIMES.map(lambda time: webhook(one(startsAt=time)))
    | st.dictionaries(st.sampled_from(["alertname", "incident", "runbook_target"]), st.text(max_size=30)).map(
        lambda v: webhook(one(labels={"alertname": "A"} | v))
    )
)
def test_whatever_is_sent_is_an_alert_or_one_line(body: bytes) -> None:
    said = ""
    read: list[Alert] = []
    try:
        read = alert.read(body)
    except BadAlert as e:
        said = str(e)
    assert bool(said) != bool(read) and "\n" not in said and len(said) < 500
    for a in read:
        name = routes.incident_id([a], "t")
        assert a.name and a.fingerprint and "/" not in name and ".." not in name and len(name) <= 64


@pytest.mark.parametrize("name", ["_", "_通知の遅延"])
def test_a_name_without_a_letter_for_a_folder_still_has_an_incident(name: str) -> None:
    incident = routes.incident_id([made(labels={"alertname": name})], "main")
    assert incident.startswith("alert-20260131T030000-")
    validate({"incident_id": incident})


def config(**values: Any) -> Settings:
    return Settings(targets={"main": GONE, "other": GONE}, **values)


def test_without_a_route_it_is_section_3_of_the_first_target() -> None:
    routed = routes.route_of(made(), config())
    assert (routed.sections, routed.target, routed.parameters) == (["3"], "main", {})
    assert routes.detection_parameters(made(), routed.sections)["detected_at"] == "2026-01-31T03:00:00.123000+00:00"


def test_an_alert_by_a_clock_that_is_ahead_was_not_noticed_in_the_future() -> None:
    ahead = replace(made(), starts_at=pd.Timestamp("2200-01-31", tz="UTC"))
    assert pd.Timestamp(routes.detection_parameters(ahead, ("3",))["detected_at"]) <= pd.Timestamp.now("UTC")


def test_the_first_route_that_fits() -> None:
    settings = config(
        routes=[
            Route(alertname="Other", sections=["2"]),
            Route(labels={"team": "payments"}, sections=["4.1"], target="other"),
            Route(alertname="NotificationsLate", sections=["4.2"], parameters={"window_minutes": 15}),
        ]
    )
    assert routes.route_of(made(), settings).sections == ["4.2"]
    labelled = made(labels={"alertname": "NotificationsLate", "team": "payments"})
    other = routes.route_of(labelled, settings)
    assert (other.sections, other.target, other.parameters) == (["4.1"], "other", {})


def test_an_alert_that_no_route_expects_starts_nothing() -> None:
    routed = config(routes=[Route(alertname="A", sections=["2"])])
    a, b, named = (
        made(labels={"alertname": n} | more) for n, more in (("A", {}), ("B", {}), ("B", {"runbook_target": "x"}))
    )
    assert [routes.is_expected(alert, routed) for alert in (a, b, named)] == [True, False, True]
    assert routes.is_expected(b, config()), "without routes every alert is"


def test_an_alert_for_an_unknown_target_is_for_no_other_one() -> None:
    known, unknown = (made(labels={"alertname": "A", "runbook_target": name}) for name in ("other", "../x"))
    assert [routes.route_of(a, config()).target for a in (known, unknown)] == ["other", "../x"]
    named = config(routes=[Route(alertname="A", sections=["2"], target="main")])
    assert routes.route_of(unknown, named).target == "main"


@pytest.mark.parametrize("settings", [{"targets": {"main": GONE, "default": GONE}}, GONE])
def test_a_default_target_replaces_an_unknown_one_and_the_alert_says_so(settings: dict[str, Any]) -> None:
    labels = {"alertname": "A", "runbook_target": "eu"}
    alerts = [made(), made(labels=labels), made(labels=labels | {"runbook_target": "default"})]
    parts = routes.split_by_incident(alerts, Settings(lang="en", **settings))
    note = "target eu is not configured, default is investigated instead"
    assert [(target, [a.note for a in own]) for target, own in parts if own[0].note] == [("default", [note])]
    (replaced,) = (own for _, own in parts if own[0].note)
    assert replaced[0].line == f"A firing: {note}: p99 is 45 s" and replaced[0].title == f"A ({note})"
    assert len({routes.incident_id(own, "default") for target, own in parts if target == "default"}) > 1


def test_alerts_of_a_group_are_one_incident_save_those_that_name_another() -> None:
    alerts = read_all(
        one(fingerprint="1"),
        one(fingerprint="2", labels={"alertname": "B", "incident": "INC-7"}),
        one(fingerprint="3", labels={"alertname": "C"}, startsAt="2026-01-31T02:00:00Z"),
        one(fingerprint="4", labels={"alertname": "D", "runbook_target": "other"}),
    )
    parts = routes.split_by_incident(alerts, config())
    assert [(t, [a.fingerprint for a in own]) for t, own in parts] == [
        ("main", ["1", "3"]), ("main", ["2"]), ("other", ["4"]),
    ]  # fmt: skip
    names = [routes.incident_id(own, target) for target, own in parts]
    assert names[0].startswith("C-20260131T020000-") and names[1] == "INC-7"
    assert len(set(names)) == 3
    assert names[0] == routes.incident_id(parts[0][1][::-1], "main")


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (Route(alertname="A", sections=["4.9"]), "number 1 (A): unknown section"),
        (Route(alertname="A", sections=["4.1"], parameters={"windw_minutes": 1}), "unknown parameter"),
        (Route(alertname="A", sections=["4.1"], target="nowhere"), "unknown target"),
    ],
)
def test_a_route_that_cannot_be_run_is_told_at_the_start(route: Route, said: str) -> None:
    with pytest.raises(UsageError, match=r"routes, number 1") as e:
        routes.check(config(routes=[route]), catalog.load())
    assert said in str(e.value)


def test_routes_that_can_be_run() -> None:
    own = [Route(sections=["3"]), Route(sections=["4.1", "4.2"], target="other")]
    routes.check(config(routes=own), catalog.load())


# Without a receiver: `runbook triage --alert FILE`.


def triaged(folder: Path, file: str, *arguments: str, body: bytes = b"") -> CompletedProcess[str]:
    (folder / "runbook.toml").write_text(
        f"[targets.main]\ndatabase_url = {GONE['database_url']!r}\n[targets.other]\nnats_url = 'nats://127.0.0.1:1'\n"
        "[[routes]]\nalertname = 'Db'\nsections = ['2']\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")}
    return runbook("triage", "--alert", file, *arguments, env=env, cwd=folder, stdin=body.decode())


def test_a_file_is_triaged_as_its_routes_say(tmp_path: Path) -> None:
    (tmp_path / "alert.json").write_bytes(
        webhook(one(labels={"alertname": "Db"}), one(fingerprint="2", status="resolved"))
    )
    done = triaged(tmp_path, "alert.json", "--json")
    said = valid(json.loads(done.stdout), "run")
    assert done.returncode == said["exit_code"] == 3
    assert (said["target"], [r["section"] for r in said["runs"]]) == ("main", ["2"])
    assert said["incident"].startswith("Db-20260131T030000-")
    (note,) = Archive(str(tmp_path / "outputs"), said["incident"]).lines(NOTE)
    valid_dossier(tmp_path / "outputs" / said["incident"])
    assert (note["who"], note["text"]) == ("alert", "Db firing: p99 is 45 s")


def test_what_is_named_goes_before_what_an_alert_says(tmp_path: Path) -> None:
    body = webhook(one(status="resolved", labels={"alertname": "Db", "incident": "INC-1"}))
    done = triaged(tmp_path, "-", "--incident", "INC-2", "--target", "other", "--json", body=body)
    said = json.loads(done.stdout)
    assert (said["incident"], said["target"]) == ("INC-2", "other")
    assert [r["section"] for r in said["runs"]] == ["6"], "what has ended is looked at for its recovery"


@pytest.mark.parametrize(
    ("arguments", "body", "said"),
    [
        (["-"], b"{}", "version: Field required"),
        pytest.param(["-"], b" " * 1_000_001, "longer than 1000000 bytes", id="long"),
        (["nowhere.json"], b"", "nowhere.json"),
        (["-", "--target", "man"], webhook(), "unknown target 'man': did you mean 'main'?"),
        (["-", "--targets", "all"], webhook(), "--alert and --targets cannot be combined"),
    ],
)
def test_a_bad_alert_is_64_and_one_line(tmp_path: Path, arguments: list[str], body: bytes, said: str) -> None:
    done = triaged(tmp_path, *arguments, body=body)
    assert (done.returncode, done.stdout) == (64, "")
    assert said in done.stderr and done.stderr.count("\n") == 1


def test_alerts_without_a_journal_are_one_order_for_each_thing_asked() -> None:
    settings = config(routes=[Route(alertname="Db", sections=["2"], parameters={"window_minutes": 5})])
    alerts = read_all(
        one(), one(fingerprint="2"), one(fingerprint="3", labels={"alertname": "Db"}),
        one(fingerprint="4", labels={"alertname": "Db", "runbook_target": "other"}), one(status="resolved"),
    )  # fmt: skip
    orders = routes.orders(alerts, settings, Order(sections=("3",), output="o", parameters={"window_minutes": 9}))
    assert [(o.sections, o.target, o.parameters["window_minutes"], len(own)) for o, own in orders] == [
        (("3",), "main", 9, 2), (("2",), "main", 9, 1), (("2",), "other", 9, 1),
    ]  # fmt: skip
    assert all(o.unattended and o.follow for o, _ in orders)
    assert orders[0][0].parameters["detected_by"] == "alert"
    assert orders[0][0].incident == orders[1][0].incident != orders[2][0].incident
