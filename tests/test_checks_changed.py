"""Step 3.6: what changed in the hours before, on frames of every shape and on real servers."""

from __future__ import annotations

import pandas as pd
import psycopg
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import NOW, ago, make_given, odd_frames, run, words

from runbook_lib.checks.check import FAILED_COLUMNS
from runbook_lib.model.finding import Frames, Reason, Status, Value, judged, replace, say
from runbook_lib.packs.entitlement.checks import changed
from runbook_lib.packs.entitlement.sandbox.servers import Servers


def frames(*changes: tuple[float, str]) -> Frames:
    rows = [(ago(seconds), what, "postgres", "exact") for seconds, what in changes]
    return {
        "changes": pd.DataFrame(rows, columns=changed.COLUMNS),
        "settings": pd.DataFrame({"whose": ["role app"], "setting": ["statement_timeout=5s"]}),
        "asked": pd.DataFrame({"source": ["postgres"]}),
        "failed": pd.DataFrame(columns=FAILED_COLUMNS),
    }


@settings(max_examples=40)
@given(data=st.data())
def test_it_is_total(data: st.DataObject) -> None:
    words(changed.judge(data.draw(odd_frames(frames((60, "a"), (90000, "b")))), make_given()))
    assert changed.judge({}, make_given()).status is Status.UNKNOWN


def test_the_nearest_before_the_onset_is_named_and_blames_nobody() -> None:
    begun = replace(judged(say("response.impact"), [Value("impact.onset", ago(300).isoformat())]), step="3.1")
    seen = frames(
        (100, "restarted meanwhile"), (400, "settings loaded"), (3000, "stream made"), (90000, "of yesterday")
    )
    found = changed.judge(seen, make_given(earlier=(begun,)))
    assert "100 s before it began: settings loaded, 400 s ago" in words(found) and "3 changes" in words(found)
    assert (found.status, found.signals, found.value("changes.before_onset")) == (Status.OK, (), 2)
    assert list(found.frames["lately"]["what"]) == ["restarted meanwhile", "settings loaded", "stream made"]
    # Without an onset it is the newest; what lies after the moment that is looked at is not told.
    assert "restarted meanwhile" in words(changed.judge(seen, make_given()))
    past = changed.judge(seen, make_given(as_of=NOW - pd.Timedelta(seconds=350)))
    assert "settings loaded" in words(past) and past.value("changes") == 2
    assert "Nothing that can be seen" in words(changed.judge(frames((90000, "of yesterday")), make_given()))


def test_what_changed_on_real_servers(servers: Servers, db: psycopg.Connection, broker: str) -> None:
    db.execute("ALTER ROLE miniserversystem SET statement_timeout = '7s'")
    db.execute("SELECT pg_reload_conf()")
    try:
        found = run(servers, "3.6")["3.6"]
    finally:
        db.execute("ALTER ROLE miniserversystem RESET statement_timeout")
    assert found.status is Status.OK, words(found)
    told = set(found.frames["lately"]["what"])
    assert {"PostgreSQL started", "stream entitlement-events made"} <= told
    assert "consumer notification-entitlement-consumer made" in told
    assert any(what.startswith("NATS server") and what.endswith("started") for what in told)
    assert "statement_timeout=7s" in set(found.frames["settings"]["setting"])
    assert {"postgres", "jetstream", "nats_monitor"} <= set(found.frames["asked"]["source"])
    assert {u.source for u in found.unseen} == {"workloads"}


def test_a_source_that_is_away_leaves_the_others(servers: Servers, db: psycopg.Connection) -> None:
    found = run(servers, "3.6", nats_url="nats://127.0.0.1:1", without=("nats_monitor_url",))["3.6"]
    assert found.status is Status.OK, words(found)
    assert "PostgreSQL started" in set(found.frames["lately"]["what"])
    assert Reason.UNREACHABLE in {u.reason for u in found.unseen}
