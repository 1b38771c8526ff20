"""Bad input and broken surroundings, by the command: a clear line, the right status, an artifact, no secret."""

from __future__ import annotations

import html
import json
import os
import resource
import signal
import socketserver
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import psycopg
import pytest

from runbook_lib.gameday.sandbox import broker
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import settings
from runbook_lib.store.archive import NOTE, Archive
from tests.kit import command, steps
from tests.kit.breaks import (
    Break,
    Env,
    a_section_runs,
    after,
    breaking,
    down,
    environment,
    frozen,
    interrupted,
    swapped,
)
from tests.kit.drills import unfit
from tests.kit.servers import Servers
from tests.kit.steps import bound
from tests.kit.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Servers that these tests alone may break."""
    with Servers(tmp_path_factory.mktemp("own")) as servers:
        servers.ensure_streams()
        yield servers


def runbook(env: Env, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    done = command.runbook(*arguments, env=env, cwd=cwd)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def process(env: Env, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The same with an interpreter of its own, where its start is what is tested."""
    done = command.alone(*arguments, env=env, **options)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def run(servers: Servers, env: Env, output: Path, *arguments: str) -> dict[str, Any]:
    """Run, and check what must hold whatever is broken: one document, an artifact per section, no secret."""
    done = runbook(env, *arguments, "--incident", "INC-5", "--output", str(output), "--json")
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == said["exit_code"]
    for section in said["runs"]:
        page = Path(section["artifact"]["html"])
        assert page.is_file() and Path(section["artifact"]["ipynb"]).is_file()
        assert all(f["status"] != "UNKNOWN" or f["reason"] for f in section["findings"])
    kept = b"".join(p.read_bytes() for p in output.rglob("*") if p.is_file()).decode(errors="replace")
    for secret in [*servers.addresses.passwords.values(), "not-the-password"]:
        assert secret not in done.stdout + done.stderr + kept
    assert "Traceback (most recent call last)" not in kept
    assert unfit(said) == []
    return said


def findings(said: dict[str, Any]) -> dict[str, tuple[str, str | None]]:
    return {f["step"]: (f["status"], f["reason"]) for r in said["runs"] for f in r["findings"]}


def admin(servers: Servers, statement: str) -> None:
    with psycopg.connect(servers.admin_url, autocommit=True) as connection:
        connection.execute(statement)


@breaking
def sql(servers: Servers, env: Env, do: str, undo: str) -> Iterator[None]:
    admin(servers, do)
    try:
        yield
    finally:
        admin(servers, undo)


@breaking
def without(servers: Servers, env: Env, *names: str) -> Iterator[None]:
    for name in names:
        del env[name]
    yield


@breaking
def declared(servers: Servers, env: Env, /, **addresses: str) -> Iterator[None]:
    env |= {f"RUNBOOK_{name}_URL": url for name, url in addresses.items()}
    yield


#: As from a machine on which nobody has opened a way to the cluster.
BOTH_CLOSED = declared(
    DATABASE="postgresql://runbook@127.0.0.1:9/d", NATS="nats://127.0.0.1:9", NATS_MONITOR="http://127.0.0.1:9"
)


@contextmanager
def pooler(servers: Servers, env: Env) -> Iterator[None]:
    """Stands before the database and takes no connection with parameters of its own, in PgBouncer's words."""
    fields = b"SFATAL\0C08P01\0Munsupported startup parameter in options: default_transaction_read_only\0\0"

    class Refuse(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            while (asked := self.request.recv(4096)) and asked[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):
                self.request.sendall(b"N")  # neither TLS nor GSS
            self.request.sendall(b"E" + (len(fields) + 4).to_bytes(4, "big") + fields)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        old = f":{servers.addresses.postgres_port}/"
        env["RUNBOOK_DATABASE_URL"] = env["RUNBOOK_DATABASE_URL"].replace(old, f":{server.server_address[1]}/")
        yield
        server.shutdown()


@contextmanager
def slots_taken(servers: Servers, env: Env) -> Iterator[None]:
    may = "pg_use_reserved_connections"
    with (
        psycopg.connect(servers.admin_url, autocommit=True) as db,
        steps.undone(db, f"REVOKE {may} FROM runbook", f"GRANT {may} TO runbook"),
        steps.slots_taken(db, servers.app_url),
    ):
        yield


@contextmanager
def locked(servers: Servers, env: Env) -> Iterator[None]:
    with steps.locked(servers, "notification.notifications"):
        yield


@contextmanager
def lock_queued(servers: Servers, env: Env) -> Iterator[None]:
    """A reader holds the table; whoever wants it all only waits, and everybody else waits behind."""
    table = "notification.notifications"
    with (
        steps.locked(servers, table, "ACCESS SHARE"),
        steps.lock_wait(servers.admin_url, f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"),
    ):
        yield


@breaking
def jetstream(servers: Servers, env: Env, change: Callable[[Any], Any]) -> Iterator[None]:
    broker.visit(servers.app_nats_url, change)
    try:
        yield
    finally:
        servers.ensure_streams()


SLOW = """
ALTER TABLE notification.notifications RENAME TO kept;
CREATE VIEW notification.notifications AS SELECT kept.* FROM notification.kept, (SELECT pg_sleep(9)) slow;
GRANT ALL ON notification.notifications TO runbook, miniserversystem
"""
QUICK = "DROP VIEW notification.notifications; ALTER TABLE notification.kept RENAME TO notifications"

UNREACHABLE, TIMEOUT, DENIED = ("UNKNOWN", "unreachable"), ("UNKNOWN", "timeout"), ("UNKNOWN", "denied")
ERROR, CRITICAL, OK = ("UNKNOWN", "error"), ("CRITICAL", None), ("OK", None)
WARNING, UNDECLARED = ("WARNING", None), ("UNKNOWN", "not_configured")


@dataclass(frozen=True)
class Case:
    """What is broken, and what section 4.1 (or another) must say of it."""

    name: str
    broken: Break
    expected: dict[str, tuple[str, str | None]]
    stuck_at: str | None
    mode: str | None = None
    section: str = "4.1"


CASES = [  # one line each: a table to read down
    Case("postgres down", down("postgres"), {"4.1.1": UNREACHABLE, "4.1.3": UNREACHABLE}, None),
    Case("wrong password", swapped("RUNBOOK_DATABASE_URL", "runbook:", "runbook:not-the-password"), {"4.1.1": DENIED, "4.1.4": DENIED}, None),
    Case("wrong database", swapped("RUNBOOK_DATABASE_URL", "/miniserversystem", "/elsewhere"), {"4.1.1": UNREACHABLE}, None),
    Case("a pooler that refuses us", pooler, {"4.1.1": DENIED, "4.1.4": DENIED}, None),
    Case("missing schema", sql("ALTER SCHEMA notification RENAME TO gone", "ALTER SCHEMA gone RENAME TO notification"), {"4.1.1": ERROR}, "database", "FM-DB-03"),
    Case("missing column", sql("ALTER TABLE notification.notifications RENAME lease_until TO gone", "ALTER TABLE notification.notifications RENAME gone TO lease_until"), {"4.1.1": ERROR}, "database", "FM-DB-03"),
    Case("permission denied", sql("REVOKE SELECT ON notification.notifications FROM runbook", "GRANT SELECT ON notification.notifications TO runbook"), {"4.1.1": DENIED, "4.1.4": DENIED}, None),
    Case("slots exhausted", slots_taken, {"4.1.1": UNREACHABLE, "4.1.4": CRITICAL}, "database", "FM-DB-01"),
    Case("table locked", locked, {"4.1.1": TIMEOUT}, "database", "FM-DB-01"),
    Case("table lock queued", lock_queued, {"4.1.1": TIMEOUT}, "database", "FM-DB-01"),
    Case("statement timeout", sql(SLOW, QUICK), {"4.1.1": TIMEOUT}, "database", "FM-DB-01"),
    Case("postgres hung", frozen("postgres"), {"4.1.1": TIMEOUT, "4.1.4": TIMEOUT}, None),
    Case("nats down", down("nats"), {"4.1.2": UNREACHABLE, "4.1.1": OK}, None),
    Case("nats refuses us", swapped("RUNBOOK_NATS_URL", "runbook:", "runbook:not-the-password"), {"4.1.2": DENIED, "4.1.1": OK}, None),
    Case("stream missing", jetstream(lambda js: js.delete_stream(broker.STREAM)), {"4.1.2": CRITICAL}, "jetstream", "FM-NATS-04"),
    Case("consumer missing", jetstream(lambda js: js.delete_consumer(broker.STREAM, broker.CONSUMER)), {"4.1.2": CRITICAL}, "jetstream", "FM-NATS-06"),
    Case("monitoring port closed", declared(NATS_MONITOR="http://127.0.0.1:9"), {"4.1.1": OK, "4.1.3": OK}, None),
    Case("monitoring port closed, and section 2 says so", declared(NATS_MONITOR="http://127.0.0.1:9"), {"2.3": UNREACHABLE, "2.5": OK}, None, section="2"),
    Case("no monitoring port declared, and section 2 says so", without("RUNBOOK_NATS_MONITOR_URL"), {"2.3": WARNING, "2.5": OK}, None, section="2"),
    Case("no broker declared", without("RUNBOOK_NATS_URL", "RUNBOOK_NATS_MONITOR_URL"), {"4.1.2": UNDECLARED, "4.1.1": OK}, None),
    Case("no broker declared, and section 2 says so", without("RUNBOOK_NATS_URL", "RUNBOOK_NATS_MONITOR_URL"), {"2.3": WARNING, "2.5": OK}, None, section="2"),
    Case("no broker declared, by section 3", without("RUNBOOK_NATS_URL", "RUNBOOK_NATS_MONITOR_URL"), {"3.2": OK}, None, section="3"),
    Case("both addresses closed", BOTH_CLOSED, {"3.2": UNREACHABLE}, None, section="3"),
    Case("nats hung", frozen("nats-server"), {"4.1.2": TIMEOUT, "4.1.1": OK}, None),
    Case("redis configured and down", declared(REDIS="redis://127.0.0.1:9/0"), {"2.6": UNREACHABLE, "2.5": OK}, None, section="2"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_broken(own: Servers, tmp_path: Path, case: Case) -> None:
    env = environment(own) | {"RUNBOOK_REDIS_URL": ""}
    # Somebody is bound to the consumers, so that only what is broken is wrong.
    live = nullcontext() if case.stuck_at == "jetstream" else bound(own.app_nats_url)
    with live, case.broken(own, env):
        said = run(own, env, tmp_path, "run", case.section, "--deadline", "60")
    seen = findings(said)
    assert {step: seen[step] for step in case.expected} == case.expected, json.dumps(
        said["runs"][0]["findings"], indent=1
    )
    assert said["verdict"]["stuck_at"] == case.stuck_at
    if case.mode:
        assert case.mode in [m["id"] for m in said["verdict"]["failure_modes"][:2]]
    if case.stuck_at is None:
        assert said["verdict"]["confidence"] != "high"
        assert said["verdict"]["proposals"] == [], "what was only not seen justifies nothing"
    assert [r["problem"] for r in said["runs"]] == [None], "it ends before the deadline"


def test_a_part_that_nobody_asked_is_in_no_all(own: Servers, tmp_path: Path) -> None:
    env = {k: v for k, v in environment(own).items() if not k.startswith("RUNBOOK_NATS")}
    said = run(own, env, tmp_path, "run", "3")
    place = next(f for f in said["runs"][0]["findings"] if f["step"] == "3.2")
    assert "outbox, notification, database answer" in place["headline"]
    assert "not read: jetstream" in place["headline"]
    assert {"source": "jetstream", "reason": "not_configured"} in said["verdict"]["unseen"]
    shown = runbook(env, "run", "3", "--output", str(tmp_path), "--incident", "S").stdout
    assert "Nothing is stuck so far, but it is too early to be sure: check again" in shown, "no loop was seen to run"
    assert "could not be read: jetstream (not_configured)" in shown


def test_empty_tables_are_a_quiet_system(own: Servers, tmp_path: Path) -> None:
    with bound(own.app_nats_url):
        said = run(own, environment(own), tmp_path, "run", "2", "3", "4.1", "4.3", "5.3", "6")
    assert {s for s, reason in findings(said).values() if reason not in ("not_configured", "no_data")} == {"OK"}
    assert said["verdict"]["stuck_at"] is None


DEADLINE = "Invalid value for '--deadline'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "4.9"], "unknown section '4.9': did you mean '4."),
        (["run", "4.1", "--target", "prodd"], "unknown target 'prodd'"),
        (["run", "4.1", "-p", "windw_minutes=5"], "unknown parameter 'windw_minutes': did you mean 'window_minutes'?"),
        (["run", "4.1", "-p", "window_minutes=never"], "parameter window_minutes='never'"),
        (["run", "4.1", "-p", "window_minutes"], "write it as NAME=VALUE"),
        (["run", "4.1", "-p", "detected_by=alert"], "unknown parameter 'detected_by'"),
        (["run", "4.1", "--as-of", "2026-01-31T03:00:00Z"], "section 7 takes a window"),
        (["run", "4.1", "-p", "as_of=2026-01-31T03:00:00Z"], "section 7 takes a window"),
        (["run", "4.1", "-p", "from_time=2026-01-31T03:00:00Z"], "unknown parameter 'from_time'"),
        (["run", "7", "-p", "from_time=soon"], "parameter from_time='soon': not a time like"),
        (["run", "7", "-p", "to_time=2200-01-01T00:00:00Z"], "that is in the future"),
        (
            ["run", "7", *(f"-p{t}_time=2026-01-31T0{h}:00:00Z" for t, h in (("from", 3), ("to", 2)))],
            "it must be after",
        ),
        (["triage", "-p", "detected_at=2026-01-31T03:00:00"], "it has no offset: write 2026-01-31T03:00:00"),
        *((["run", "4.1", "--deadline", n], DEADLINE) for n in ("nan", "inf", "0", "-1", "1e300")),
        (["triage", "--deadline", "nan"], DEADLINE),
        (["postmortem", "x", "--deadline", "nan"], DEADLINE),
        *((["act", "restart", "notification", "--wait", n], "'--wait'") for n in ("nan", "inf")),
        (["act", "restart", "notification", "--wait", "0"], "parameter wait_s="),
        (["act", "canary", "--incident", "I"], "the target has no canary_user"),
        (["sandbox", "up", "--rate", "nan"], "Invalid value for '--rate'"),
        (["note", "x", "hi", "--output", os.fsdecode(b"caf\xe9")], "is not UTF-8"),
        (["run", "4.1", "--incident", "a/b"], "parameter incident_id='a/b'"),
        (["run", "4.1", "--incident", ".."], "incident ..: the name is reserved"),
        (["run"], "Missing argument"),
        (["run", "4.1", "-p", "target=here"], "-p target: use --target"),
        *(
            (["run", *words], "--wait needs section 6 alone")
            for words in (("4.1", "--wait=3m"), ("6", "3", "--wait=3m"))
        ),
        *((["run", "6", "--wait", wait], "write it as 180, 180s, 3m or 1h") for wait in ("soon", "-3")),
        (["triage", "-p", "target=here"], "-p target: use --target"),
        (["triage", "--targets", "default", "--target", "other"], "--target and --targets cannot be combined"),
        (["triage", "--targets", "defalt"], "unknown target 'defalt': did you mean 'default'?"),
        (["triage", "--targets", ","], "--targets names no system"),
        (["triage", "--workers", "2"], "need --targets"),
        (
            ["act", "restart", "notification", "--execute", "--approved-by", "Aoki", "--reason", "it hangs"],
            "--execute needs --incident",
        ),
        (["run", "4.1", "--colour"], "No such option"),
        (["trage"], "unknown command 'trage': did you mean 'triage'?"),
        (["dossier", "nothing-here"], "no incident 'nothing-here'"),
        (["verify", "../x"], "parameter incident_id='../x'"),
        (["note", "nothing-here", "x"], "no incident 'nothing-here' under {out}: known: none (--new creates one)"),
        (["note", "a/b", "x", "--new"], "parameter incident_id='a/b'"),
    ],
)
def test_wrong_usage_is_64_and_one_line(own: Servers, tmp_path: Path, arguments: list[str], said: str) -> None:
    (tmp_path / "file").write_text("")
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path / "out")}
    done = runbook(env, *[a.replace("{file}", str(tmp_path / "file")) for a in arguments], cwd=tmp_path)
    assert done.returncode == 64
    assert said.replace("{out}", str(tmp_path / "out")) in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("group", [[], ["act"], ["sandbox"]], ids=str)
def test_a_group_without_a_command_is_its_help_and_nothing_else(own: Servers, group: list[str]) -> None:
    done, asked = (runbook(environment(own), *group, *more) for more in ([], ["--help"]))
    assert (done.returncode, done.stdout, asked.returncode) == (64, "", 0)
    assert done.stderr == asked.stdout and done.stderr.startswith(" ".join(["Usage: runbook", *group]))


def test_a_note_belongs_to_an_incident_that_is_there(own: Servers, tmp_path: Path) -> None:
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path)}
    assert runbook(env, "note", "INC-1", "it began", "--new").returncode == 0
    noted = runbook(env, "note", "INC-1", "called them")
    assert noted.returncode == 0
    wrong = runbook(env, "note", "INC-typo", "called them")
    line = f"runbook: no incident 'INC-typo' under {tmp_path}: did you mean 'INC-1'? (--new creates one)\n"
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (64, "", line)
    assert [p.name for p in tmp_path.iterdir()] == ["INC-1"]
    whole = runbook(env, "verify", "INC-1", "--checkpoint", noted.stdout.splitlines()[-1])
    assert (whole.returncode, "2 sealed entries" in whole.stdout) == (0, True), whole
    runbook(env, "note", "INC-2", "alone", "--new")
    assert "1 sealed entry" in runbook(env, "verify", "INC-2").stdout


def test_a_note_names_people_as_the_runs_do(own: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path)}
    runbook(env, "run", "2", "--incident", "INC-1")
    password = own.addresses.passwords["runbook"]
    assert runbook(env, "note", "INC-1", f"user_id=anna waits; tried {password}").returncode == 0
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    archive = Archive(str(tmp_path), "INC-1")
    token = Masker.of(settings.load().target("default").urls(), "INC-1", archive.salt).person("anna")
    (noted,) = archive.lines(NOTE)
    assert noted["text"] == f"user_id={token} waits; tried ***"


@pytest.mark.parametrize("broken", [c.broken for c in CASES if c.name in ("wrong database", "wrong password")])
def test_what_the_settings_have_wrong_points_to_section_2(own: Servers, tmp_path: Path, broken: Break) -> None:
    env = environment(own)
    with bound(own.app_nats_url), broken(own, env):
        said = run(own, env, tmp_path, "run", "4.1")
        assert "2" in said["verdict"]["next_sections"]


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("targets = 3", "settings: targets"),
        ("targets", "not valid TOML"),
        ('[targets.prod]\ndatabase_url = "postgresql://u:s3cret-x@h/d"', "has a password in"),
    ],
)
def test_bad_settings_are_64_and_one_line(own: Servers, tmp_path: Path, toml: str, said: str) -> None:
    (tmp_path / "runbook.toml").write_text(toml)
    done = runbook(environment(own), "run", "4.1", "--target", "prod", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (64, 1), done.stderr
    assert said in done.stderr and "s3cret-x" not in done.stderr


@pytest.mark.parametrize(
    ("name", "url", "said"),
    [
        ("DATABASE", "postgresql://u:s3cret-x@127.0.0.1:54x2/d", "database_url: its host or its port cannot be read"),
        ("DATABASE", "postgresql://u:s3cret-x/y@h:5432/d", "database_url: its host or its port cannot be read"),
        ("DATABASE", "postgresql://u:s3cret-x@:5432/d", "database_url: it names no host"),
        ("DATABASE", "mysql://u:s3cret-x@h/d", "database_url: it does not begin with postgresql://"),
        ("DATABASE", "s3cret-x", "database_url: it does not begin with postgresql://"),
        ("NATS", "nats://u:s3cret-x@h:99999", "nats_url: its host or its port cannot be read"),
        ("NATS", "nats://", "nats_url: it names no host"),
        ("NATS_MONITOR", "nats://h:8222", "nats_monitor_url: it does not begin with http://"),
        ("REDIS", "redis://", "redis_url: it names no host"),
        ("PROMETHEUS", "http://h:9o90", "prometheus_url: its host or its port cannot be read"),
    ],
)
def test_a_malformed_address_is_64_and_one_line(own: Servers, tmp_path: Path, name: str, url: str, said: str) -> None:
    env = environment(own) | {f"RUNBOOK_{name}_URL": url}
    commands = (
        ["triage", "lab"] if name != "DATABASE" else ["run 4.1", "triage", "act restart notification", "serve --port 0"]
    )
    for asked in commands:
        done = runbook(env, *asked.split(), cwd=tmp_path)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (64, 1, ""), (asked, done.stderr)
        assert said in done.stderr and "s3cret-x" not in done.stderr
    assert runbook(env, "note", "x", "this needs no address", "--new", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:///d",
        "postgresql://u@/d?host=/run/postgresql",
        "postgres://u:p%40@[::1]:5432/d",
        "postgresql+psycopg://h/d",
    ],
)
def test_an_address_may_be_written_in_several_ways(url: str) -> None:
    assert settings.Settings(database_url=url).target("default").url("database_url") == url


def test_bytes_that_are_no_text_are_kept(own: Servers, tmp_path: Path) -> None:
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path)}
    assert "caf\\xe9 日本" in process(env, "note", "X", os.fsdecode(b"caf\xe9 " + "日本".encode()), "--new").stdout
    assert json.loads((tmp_path / "X" / "log.jsonl").read_text(encoding="utf-8"))["text"] == "caf\\xe9 日本"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_the_characters_loses_nothing(own: Servers, tmp_path: Path, encoding: str) -> None:
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path), "PYTHONIOENCODING": encoding, "RUNBOOK_LANG": "ja"}
    said = process(env, "run", "4.1", "--json", encoding=encoding if encoding == "latin-1" else "utf-8")
    headline = json.loads(said.stdout)["runs"][0]["findings"][0]["headline"]
    (page,) = (tmp_path / "adhoc").glob("*-4.1-*.html")
    assert headline in html.unescape(page.read_text(encoding="utf-8"))
    assert process(env, "run", "4.1", encoding="latin-1").returncode == said.returncode
    assert process(env, "sections", encoding="latin-1").returncode == 0


@pytest.mark.parametrize("arguments", [["run", "4.1"], ["run", "4.1", "--json"], ["sections"], ["--help"]])
def test_who_reads_it_may_go_and_the_exit_code_stays(own: Servers, tmp_path: Path, arguments: list[str]) -> None:
    env = environment(own) | {"RUNBOOK_OUTPUT": str(tmp_path)}
    expected = runbook(env, *arguments).returncode
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing) as gone:
        done = process(env, *arguments, stdout=gone)
    assert (done.returncode, done.stderr) == (expected, "")
    with Path("/dev/full").open("w") as full:
        done = process(env, *arguments, stdout=full)
        assert (done.returncode, done.stderr) == (69, "runbook: No space left on device\n")
        done = command.alone(*arguments, "--colour", env=env, stdout=None, stderr=full)
        assert done.returncode == 64


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    "asked", [["triage"], ["run", "3", "4.1", "4.3"], ["triage", "--targets", "default"]], ids=" ".join
)
def test_an_interrupt_leaves_nothing(own: Servers, tmp_path: Path, asked: list[str], number: signal.Signals) -> None:
    env = environment(own)
    moments = [after(s) for s in (0, 0.7)] + [after(s, a_section_runs) for s in (0, 0.3)]
    with frozen("postgres")(own, env):  # makes the sample last
        for n, when in enumerate(moments):
            interrupted(env, asked, when, number, tmp_path / str(n))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("word", ["", "Starting", "$ runbook triage"])
def test_an_interrupt_of_the_demo_leaves_nothing(
    own: Servers, tmp_path: Path, word: str, number: signal.Signals
) -> None:
    interrupted(
        environment(own), ["sandbox", "demo", "--output", str(tmp_path / "out")],
        after(1.5, lambda said: word in said.read_text()), number, tmp_path / "demo",
    )  # fmt: skip


def test_a_target_in_disorder_does_not_block_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "runbook.toml").write_text('[targets.a]\nlease = 1\n[targets.b]\nnats_url = "nats://h"')
    monkeypatch.chdir(tmp_path)
    assert settings.load().target("b").url("nats_url") == "nats://h"
    with pytest.raises(UsageError, match=r"targets\.a\.lease"):
        settings.load().target("a")


def test_a_full_disk_loses_no_verdict(own: Servers, tmp_path: Path) -> None:
    """Files may not grow beyond a few kB: what a full disk does, without one."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    asked = ("run", "4.1", "--output", str(tmp_path / "o"), "--json", "--incident", "F")
    done = process(environment(own), *asked, preexec_fn=limit)
    said = json.loads(done.stdout)
    assert [f["step"] for f in said["runs"][0]["findings"]] == ["4.1.1", "4.1.2", "4.1.3", "4.1.4"]
    assert done.returncode == said["exit_code"]
    assert "could not be written" in done.stderr


def test_a_killed_runner_is_listed_as_such(own: Servers, tmp_path: Path) -> None:
    env = environment(own)
    with locked(own, env):  # makes the run last
        asked = ("run", "4.3", "--incident", "K", "--output", str(tmp_path), "--json")
        running = command.start(*asked, env=env)

        def runner_of() -> psutil.Process | None:
            assert running.poll() is None
            with suppress(psutil.Error):
                # The command's server forks who carries the order out, who forks runners.
                tree = psutil.Process(running.pid).children(recursive=True)
                return next((p for p in tree if p.parents()[2].pid == running.pid), None)
            return None

        partial = until(lambda: next(tmp_path.rglob("*.partial.ipynb"), None))
        runner = until(runner_of)
        runner.kill()
        out, err = running.communicate(timeout=60)
    said = json.loads(out)
    assert "the runner was killed" in err
    assert said["exit_code"] == running.returncode == 3
    assert {f["reason"] for f in said["runs"][0]["findings"]} <= {"not_run", "timeout"}
    # Another process has stored what it left.
    page = Path(said["runs"][0]["artifact"]["html"])
    assert "This run did not finish: the runner was killed." in page.read_text(encoding="utf-8")
    assert page.name in (tmp_path / "K" / "index.html").read_text(encoding="utf-8") and not partial.exists()


def test_the_deadline_holds_and_leaves_a_truthful_artifact(own: Servers, tmp_path: Path) -> None:
    env = environment(own)
    with frozen("postgres")(own, env):
        said = run(own, env, tmp_path, "run", "4.3", "--deadline", "5")
    assert said["status"] == "UNKNOWN"
    assert "not_run" in {f["reason"] for f in said["runs"][0]["findings"]}
    assert "deadline" in said["runs"][0]["problem"]
    assert "did not finish" in Path(said["runs"][0]["artifact"]["html"]).read_text(encoding="utf-8")
