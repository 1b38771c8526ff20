"""NATS as it is found: TLS, keys, users of an operator, clusters that lose nodes, monitoring behind a door."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nats
import pandas as pd
import pytest
from nats.aio.msg import Msg
from nats.js.api import StreamConfig

from runbook_lib.book import messages
from runbook_lib.checks.check import checks
from runbook_lib.gameday.sandbox import broker as applications
from runbook_lib.gameday.sandbox.state import free_ports
from runbook_lib.model import rows
from runbook_lib.model.finding import Finding, Frames, Reason, Status
from runbook_lib.model.frames import row
from runbook_lib.packs.entitlement.checks import publish
from runbook_lib.packs.jetstream import quorum
from runbook_lib.packs.jetstream.quorum import META, Member, Nodes
from runbook_lib.privacy.masking import Masker
from runbook_lib.sources import settings
from runbook_lib.sources.jetstream import JetStream
from runbook_lib.sources.nats_monitor import NatsMonitor
from runbook_lib.sources.settings import NatsAccess, Settings
from runbook_lib.sources.source import SourceError
from tests.kit import brokers, steps
from tests.kit.brokers import Authority, Cluster, Node, Operator
from tests.kit.frames.scope import broker_frames
from tests.kit.sources import a_read_cost, refused
from tests.kit.steps import NOW, ago, expect, words
from tests.kit.waiting import until
from tests.kit.web import reply, web

pytestmark = pytest.mark.slow

CHECKS = checks()
PASSWORD, TOKEN = "p/ss:w@rd?1", "t0ken/of=ours"


def asks(url: str, **access: Any) -> str:
    """The version of the broker that lets us in, or the code of why it does not."""
    try:
        source = JetStream(url, "runbook test", a_read_cost(), NatsAccess(**access))
        source._call_api("INFO")
        return str(source.server()["version"])[:1]
    except SourceError as e:
        return e.code if e.reason is Reason.DENIED and "\n" not in e.detail else repr(e)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "theirs")


@pytest.fixture(scope="module")
def secured(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A broker with TLS that asks for a client's certificate and for a password; its monitoring is HTTPS."""
    folder = tmp_path_factory.mktemp("secured")
    certificate, key = authority.sign("server")
    files = f'cert_file: "{certificate}", key_file: "{key}", ca_file: "{authority.file}"'
    config = f"""
        jetstream {{ store_dir: "{folder}", domain: hub }}
        tls {{ {files}, verify: true }}
        authorization {{ users = [ {{ user: runbook, password: "{PASSWORD}" }} ] }}
    """
    with brokers.node(folder, config, "https") as one:
        yield one


def test_tls_of_a_private_ca_with_a_client_certificate(
    secured: Node, authority: Authority, stranger: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.sign("runbook")
    own = {"cert_file": certificate, "key_file": key}
    known = {"ca_file": authority.file, "user": "runbook", "password": PASSWORD}
    assert asks(secured.url, **known, **own) == "2"
    assert asks(secured.url, **known, **own, domain="hub") == "2"
    assert asks(secured.url, **known, **own, api_prefix="$JS.hub.API") == "2"
    assert asks(secured.url, **known, **own, domain="elsewhere") == "no_prefix"
    assert asks(secured.url, **known | own | {"password": "another"}) == "wrong_credentials"
    assert asks(secured.url, **known) == "no_certificate"
    their_certificate, their_key = stranger.sign("runbook")
    assert asks(secured.url, **known, cert_file=their_certificate, key_file=their_key) == "no_certificate"
    assert asks(secured.url, **own) == "wrong_ca"
    assert asks(secured.url, **known | own | {"ca_file": stranger.file}) == "wrong_ca"
    # The certificate has no other name.
    assert asks(secured.url.replace("127.0.0.1", "localhost"), **known, **own) == "wrong_ca"
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for changed in (
        {"ca_file": tmp_path / "nowhere.pem"},
        {"ca_file": key},
        {"ca_file": empty},
        {"key_file": tmp_path / "nowhere.key"},
        {"key_file": stranger.sign("a")[1]},
        {"key_file": authority.sign("b", word=b"a word")[1]},
    ):
        assert asks(secured.url, **known | own | changed) == "no_file", changed
    with refused("jetstream", Reason.DENIED, "no_file") as caught:
        JetStream(secured.url, "x", a_read_cost(), NatsAccess(**known | {"ca_file": tmp_path / "nowhere.pem"})).server()
    assert (
        str(caught.value) == f"jetstream: nats_ca_file: cannot read {tmp_path}/nowhere.pem (No such file or directory)"
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("plain")
    config = f'jetstream {{ store_dir: "{folder}" }}\nauthorization {{ token: "{TOKEN}" }}\ntrace: true\ndebug: true'
    with brokers.node(folder, config) as one:
        yield one


def test_a_token(plain: Node) -> None:
    assert asks(plain.url, token=TOKEN) == "2"
    assert asks(plain.url.replace("://", f"://{quote(TOKEN, safe='')}@")) == "2"
    assert asks(plain.url, token="another") == "wrong_credentials"
    assert asks(plain.url) == "wrong_credentials"


def test_a_websocket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nats.aio.transport.aiohttp", None)  # as it is when the runbook has imported the client
    (port,) = free_ports(1)
    listens = f'websocket {{ listen: "127.0.0.1:{port}", no_tls: true }}'
    with brokers.node(tmp_path, f'jetstream {{ store_dir: "{tmp_path}" }}\n{listens}'):
        assert asks(f"ws://127.0.0.1:{port}") == "2"


def test_where_tls_is_asked_for_nothing_is_said_without_it(plain: Node, authority: Authority) -> None:
    before = plain.log().count("[CONNECT")
    assert asks(plain.url, token=TOKEN, ca_file=authority.file) == "no_tls"
    assert asks(plain.url.replace("nats:", "tls:"), token=TOKEN) == "no_tls"
    assert plain.log().count("[CONNECT") == before


def test_the_first_of_several_urls_that_answers(plain: Node) -> None:
    gone, hung = free_ports(2)
    source = JetStream(f"nats://127.0.0.1:{gone}, {plain.url}", "x", a_read_cost(), NatsAccess(token=TOKEN))
    assert source.server()["version"]
    assert source._urls[0] == plain.url  # where the next question begins
    # That one lets nobody in says more than that another is not there.
    both = f"nats://127.0.0.1:{gone},{plain.url},nats://127.0.0.1:{hung}"
    assert asks(both, token="another") == "wrong_credentials"
    with refused("jetstream", Reason.UNREACHABLE, "no_connection"):
        JetStream(f"nats://127.0.0.1:{gone},nats://127.0.0.1:{hung}", "x", a_read_cost()).server()


def test_a_password_that_a_url_has_to_spell(tmp_path: Path) -> None:
    config = f'jetstream {{ store_dir: "{tmp_path}" }}\nauthorization {{ user: me, password: "{PASSWORD}" }}'
    with brokers.node(tmp_path, config) as one:
        assert asks(one.url.replace("://", f"://me:{quote(PASSWORD, safe='')}@")) == "2"
        assert asks(one.url, user="me", password=PASSWORD) == "2"


def test_an_nkey(tmp_path: Path) -> None:
    own, other = brokers.seed(), brokers.seed()
    users = f"{{ nkey: {brokers.public(own)} }}"
    config = f'jetstream {{ store_dir: "{tmp_path}" }}\nauthorization {{ users = [ {users} ] }}'
    (tmp_path / "own.nk").write_text(f"{own}\n")
    (tmp_path / "other.nk").write_text(other)
    (tmp_path / "public.nk").write_text(brokers.public(own))
    with brokers.node(tmp_path / "nats", config) as one:
        assert asks(one.url, nkey_file=tmp_path / "own.nk") == "2"
        assert asks(one.url, nkey_file=tmp_path / "other.nk") == "wrong_credentials"
        assert asks(one.url, nkey_file=tmp_path / "public.nk") == "no_file"
        assert asks(one.url, nkey_file=tmp_path / "nowhere.nk") == "no_file"


def test_a_creds_file_of_an_operators_user(tmp_path: Path) -> None:
    operator, stranger = Operator(), Operator()
    for name, text in {
        "own": operator.creds("runbook"),
        "other": stranger.creds("runbook"),
        "half": operator.creds("runbook").partition("-----BEGIN USER")[0],
        "none": "",
    }.items():
        (tmp_path / name).write_text(text)
    config = f'jetstream {{ store_dir: "{tmp_path}/js" }}\n{operator.config}'
    with brokers.node(tmp_path / "nats", config) as one:
        assert asks(one.url, creds_file=tmp_path / "own") == "2"
        assert asks(one.url, creds_file=tmp_path / "other") == "wrong_credentials"
        assert {asks(one.url, creds_file=tmp_path / name) for name in ("half", "none", "nowhere")} == {"no_file"}
        assert asks(one.url) == "wrong_credentials"


# Settings ---------------------------------------------------------------------------------------------------


def test_a_target_names_files_and_where_its_secrets_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_PASSWORD", PASSWORD)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "runbook.toml").write_text(
        """
        [targets.here]
        nats_url = ["tls://a:4222", "tls://b:4222"]
        nats_monitor_url = "https://a:8222,https://b:8222"
        nats_ca_file = "ca.pem"
        nats_cert_file = "/etc/own.pem"
        nats_key_file = "/etc/own.key"
        nats_user = "runbook"
        nats_password = "env:A_PASSWORD"
        nats_domain = "hub"
        action_nats_token = "file:token"
        """
    )
    here = settings.load().target("here")
    assert settings.split_urls(here.url("nats_url") or "") == ["tls://a:4222", "tls://b:4222"]
    assert (here.nats.ca_file, here.nats.cert_file) == (Path("ca.pem"), Path("/etc/own.pem"))
    assert (here.nats.user, here.nats.domain) == ("runbook", "hub")
    # What acts has a user of its own, and the same broker.
    assert (here.action_nats.user, here.action_nats.ca_file) == ("", Path("ca.pem"))
    said = Masker.of(here.urls(), "INC-1").scrub(f"{PASSWORD} {TOKEN} {quote(PASSWORD, safe='')}")
    assert said == "*** *** ***"
    assert PASSWORD not in repr(here) + here.model_dump_json()


def test_the_environment_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    for name, value in {
        "URL": "nats://a,nats://b", "TOKEN": f"file:{tmp_path / 'token'}", "CA_FILE": "/etc/ca.pem",
        "API_PREFIX": "$JS.hub.API",
    }.items():  # fmt: skip
        monkeypatch.setenv(f"RUNBOOK_NATS_{name}", value)
    found = Settings().target("default").nats
    assert found.token is not None
    assert (found.token.get_secret_value(), found.ca_file) == (TOKEN, Path("/etc/ca.pem"))
    assert found.api_prefix == "$JS.hub.API"


# A cluster --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes with the applications' streams on all of them, and their subscriber's client on one."""
    with brokers.cluster(tmp_path_factory.mktemp("cluster")) as three:

        async def fill() -> None:
            client = await nats.connect([n.url for n in three.nodes.values()], allow_reconnect=False)
            try:
                js = client.jetstream(timeout=5)
                for durable, (stream, subject) in applications.CONSUMERS.items():
                    await js.add_stream(
                        StreamConfig(name=stream, subjects=[subject], num_replicas=3, duplicate_window=120)
                    )
                    await applications.ensure_consumer(js, durable)
                await js.publish(applications.SUBJECT, b"{}")
            finally:
                await client.close()

        def filled() -> bool:
            with suppress(Exception):  # there is no leader yet, or not of all
                asyncio.run(fill())
                return True
            return False

        until(filled, "the cluster to take the streams", 120)
        yield three


def asked_of(url: str, monitor: str, step: str) -> Finding:
    """What a step finds where the database is not declared."""
    rb = steps.open_target(step.rpartition(".")[0], {"nats_url": url, "nats_monitor_url": monitor})
    found = CHECKS[step].run(rb)
    words(found)
    return found


def signals(finding: Finding) -> set[str]:
    return {s.observation for s in finding.signals}


def test_a_cluster_loses_its_nodes(cluster: Cluster) -> None:
    """One after the other, and what each step says of it; the second is frozen, as in a network that drops all."""

    def leads() -> str:
        info = JetStream(cluster.url, "x", a_read_cost()).stream(applications.STREAM)
        return str(info["cluster"].get("leader", ""))

    def both() -> dict[str, Finding]:
        return {s: asked_of(cluster.url, cluster.monitor_url, s) for s in ("2.3", "4.1.2")}

    def well() -> bool:
        found = asked_of(cluster.url, cluster.monitor_url, "2.3")
        return "broker.well" in signals(found) or "broker.unbound" in signals(found)

    until(well, "a quorum of every group", 120)
    leader = until(leads, "a leader")
    first, second = (name for name in cluster.nodes if name != leader)
    with steps.bound(cluster.nodes[leader].url):

        def looked() -> Finding:
            return asked_of(cluster.url, cluster.monitor_url, "2.3")

        found = until(
            lambda: (f := looked()).status is Status.OK and f,
            lambda: f"all to be as expected: {messages.text(looked().headline, 'en')}",
            120,
        )
        assert "broker.well" in signals(found)
        assert {m.group for m in rows.each(found.frames["replicas"], Member)} >= {applications.STREAM, META}
        # The client of the leader's node is seen from all three, and from that one alone; not from another.
        everywhere = asked_of(cluster.url, cluster.monitor_url, "4.1.2")
        assert everywhere.frames["clients"]["bound"].any()
        elsewhere = asked_of(cluster.url, cluster.nodes[first].monitor_url, "4.1.2")
        assert not elsewhere.frames["clients"]["bound"].any()
        assert rows.one(elsewhere.frames["nodes"], Nodes) == Nodes(1, 3)
        assert "1 of the cluster's 3 nodes" in noted(elsewhere)

        cluster.nodes[first].stop()

        def missed() -> Any:
            found = both()
            warned = all(f.status is Status.WARNING for f in found.values())
            return warned and first in noted(found["2.3"]) and found

        thin = until(missed, f"a warning of both steps that names {first}", 120)
        assert "broker.well" in signals(thin["2.3"])
        until(lambda: ready(cluster.url), "a meta leader", 120)
        assert "subscriber.no_quorum" not in signals(thin["4.1.2"])

        survivor = leads()
        second = next(name for name in cluster.nodes if name not in (first, survivor))
        cluster.nodes[second].signal(signal.SIGSTOP)
        try:
            # At once the leader answers as if nothing were; nobody says OK from the moment on that it may not be.
            def lost() -> Any:
                found = both()
                return all(f.status is Status.CRITICAL for f in found.values()) and found

            gone = until(lost, "both steps to see that nothing can be written", 120)
            for finding in gone.values():
                assert Status.OK is not finding.status
                verdict = steps.verdict_of(finding)
                assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("jetstream", "FM-NATS-07")
                assert {p.name for p in verdict.proposals} <= {"pods", "logs"}
            until(lambda: not ready(cluster.url), "a restart to be refused", 120)
        finally:
            cluster.nodes[second].signal(signal.SIGCONT)
    cluster.nodes[first].start()
    until(well, "the cluster to be whole again", 120)


def ready(url: str) -> bool:
    try:
        JetStream(url, "x", a_read_cost()).ready()
    except SourceError:
        return False
    return True


def noted(finding: Finding) -> str:
    return " ".join(messages.text(n, "en") for n in finding.notes)


def replicas(*members: Member) -> pd.DataFrame:
    return rows.frame([Member(applications.STREAM, "n0", leader=True, current=True), *members], Member)


def member(node: str, active_s: float | None, *, current: bool = True, offline: bool = False) -> Member:
    return Member(applications.STREAM, node, current=current, offline=offline, active_s=active_s)


@pytest.mark.parametrize(
    ("first", "second", "writes"),
    [
        (member("n1", 0.4), member("n2", 0.4), True),
        (member("n1", 0.4), member("n2", None, current=False, offline=True), True),
        (member("n1", 0.4), member("n2", 0.4, current=False), True),  # one is behind
        (member("n1", 0.4, current=False), member("n2", 20.0, current=False), None),  # the other one too
        (member("n1", 7.0), member("n2", 7.0), None),  # silent, and not yet for long
        (member("n1", None), member("n2", None), None),  # a server that does not say since when
        (member("n1", 11.0, current=False), member("n2", None, current=False), False),
        (member("n1", None, offline=True), member("n2", 12.0, current=False), False),
    ],
)
@pytest.mark.parametrize("error", ["Timeout or no response waiting for NATS JetStream server", "503 No Responders"])
def test_publishes_that_fail_in_a_cluster(first: Member, second: Member, writes: bool | None, error: str) -> None:
    due = {"now": NOW, "due": 40, "oldest_due_s": 20.0, "tried": 40, "waiting_retry": 40, "last_published": ago(60)}
    frames = {
        "delay": row(n=0),
        "unprocessed": pd.DataFrame(),
        "backlog": pd.DataFrame([due]),
        "errors": row(status="PENDING", last_error=error, n=40, newest=NOW),
        "broker": row(answers=True, last_seq=9),
        "replicas": replicas(first, second),
    }
    assert quorum.writes(frames, steps.make_given(), applications.STREAM, "broker") is writes
    found = publish.judge(frames, steps.make_given())
    words(found)
    verdict = steps.verdict_of(found)
    if writes is True:
        assert "FM-NATS-07" not in {s.about for s in found.signals}
    elif writes is False:
        assert (verdict.stuck_at, verdict.failure_modes[0].id) == ("jetstream", "FM-NATS-07")
    else:
        assert verdict.stuck_at is None
        assert {"relay", "jetstream"} <= set(verdict.undecided)
    if not writes:
        assert not [p for p in found.proposals if p.name.startswith("restart")]


def scope_frames(members: list[Member], seen: int) -> Frames:
    return broker_frames() | {
        "replicas": rows.frame(members, Member),
        "nodes": row(seen=seen, of=3),
    }


def test_nobody_leads_the_cluster() -> None:
    silent = [Member(META, f"n{n}", active_s=30.0) for n in range(3)]
    found = CHECKS["2.3"].judge(scope_frames(silent, 3), steps.make_given())
    assert (found.status, signals(found)) == (Status.CRITICAL, {"broker.no_meta_leader"})
    assert "an application that is restarted now does not start" in noted(found)
    assert "no leader" in words(found)
    # One node alone may be cut off from two that have elected one.
    alone = CHECKS["2.3"].judge(scope_frames(silent, 1), steps.make_given())
    assert (alone.status, signals(alone)) == (Status.UNKNOWN, {"broker.quorum_unclear"})


# What other servers say -------------------------------------------------------------------------------------

#: What a server of 2.10 says, and no more.
OLD: dict[str, dict[str, Any]] = {
    "STREAM.INFO": {
        "type": "io.nats.jetstream.api.v1.stream_info_response",
        "config": {"name": "s", "subjects": [applications.SUBJECT], "retention": "limits", "max_msgs": -1,
                   "storage": "file", "discard": "old", "num_replicas": 1, "duplicate_window": 120_000_000_000},
        "created": "2024-01-01T00:00:00Z",
        "state": {"messages": 3, "bytes": 90, "first_seq": 1, "last_seq": 3, "consumer_count": 1},
    },
    "CONSUMER.INFO": {
        "type": "io.nats.jetstream.api.v1.consumer_info_response",
        "stream_name": "s", "name": "d", "created": "2024-01-01T00:00:00Z",
        "config": {"durable_name": "d", "deliver_subject": "_INBOX.x", "deliver_policy": "all",
                   "ack_wait": 10_000_000_000, "max_deliver": 10, "max_ack_pending": 1000},
        "delivered": {"consumer_seq": 3, "stream_seq": 3}, "ack_floor": {"consumer_seq": 3, "stream_seq": 3},
        "num_ack_pending": 0, "num_redelivered": 0, "num_waiting": 0, "num_pending": 0, "push_bound": True,
    },
}  # fmt: skip


@contextmanager
def answering(url: str, answers: dict[str, dict[str, Any]]) -> Iterator[None]:
    """Somebody answers JetStream's questions at a broker that has none, by their first two words."""
    loop, ready, done = asyncio.new_event_loop(), threading.Event(), asyncio.Event()

    async def serve() -> None:
        client = await nats.connect(url)

        async def answer(message: Msg) -> None:
            call = ".".join(message.subject.split(".")[2:4])
            await message.respond(json.dumps(answers[call]).encode())

        await client.subscribe("$JS.API.>", cb=answer)
        await client.flush()
        ready.set()
        await done.wait()
        await client.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with brokers.node(tmp_path_factory.mktemp("bare"), "") as one:
        yield one


def test_an_older_server_says_less(bare: Node) -> None:
    with answering(bare.url, OLD), monitoring({"varz": {"version": "2.10.0"}, "connz": {}, "jsz": {}}) as http:
        found = {s: asked_of(bare.url, http, s) for s in ("2.3", "4.1.2")}
    expect(found["2.3"], Status.OK, values={"broker.clients": None})
    expect(found["4.1.2"], values={"consumer.bound": "yes", "subscriber.lag": 0})
    assert not found["4.1.2"].frames["replicas"].size


@pytest.mark.parametrize("field", ["num_pending", "num_ack_pending", "ack_floor", "delivered"])
def test_what_a_server_does_not_say_is_no_zero(bare: Node, field: str) -> None:
    consumer = {k: v for k, v in OLD["CONSUMER.INFO"].items() if k != field}
    with answering(bare.url, OLD | {"CONSUMER.INFO": consumer}), monitoring({}) as http:
        found = asked_of(bare.url, http, "4.1.2")
    expect(found, Status.UNKNOWN, values={"subscriber.lag": None})
    assert not [s for s in found.signals if s.weight > 0]


@contextmanager
def monitoring(answers: dict[str, Any], word: str = "") -> Iterator[str]:
    """An HTTP server with these documents; with a word for those alone who have it."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        page = request.path.partition("?")[0].strip("/")
        may = not word or request.headers.get("Authorization") == "Basic " + b64encode(word.encode()).decode()
        there = may and page in answers
        reply(request, 401 if not may else 200 if there else 404, json.dumps(answers[page]).encode() if there else b"")

    with web(answer) as url:
        yield url


def test_monitoring_behind_a_password() -> None:
    with monitoring({"varz": {"version": "2.15.1"}}, f"ops:{PASSWORD}") as http:
        known = http.replace("://", f"://ops:{quote(PASSWORD, safe='')}@")
        ledger = a_read_cost()
        assert NatsMonitor(f"http://127.0.0.1:9,{known}", ledger).servers() == [{"version": "2.15.1"}]
        assert PASSWORD not in str(ledger.queries)
        with refused("nats_monitor", Reason.DENIED, "401"):
            NatsMonitor(http, a_read_cost()).servers()


def test_monitoring_behind_tls(secured: Node, authority: Authority, stranger: Authority, tmp_path: Path) -> None:
    url = secured.monitor_url.replace("http:", "https:")
    certificate, key = authority.sign("monitor")
    own = {"cert_file": certificate, "key_file": key}
    known = NatsAccess(ca_file=authority.file, **own)
    assert NatsMonitor(url, a_read_cost(), known).servers()[0]["version"].startswith("2.")
    for access, code in (
        (NatsAccess(**own), "no_tls"),
        (NatsAccess(ca_file=stranger.file, **own), "no_tls"),
        (NatsAccess(ca_file=tmp_path / "nowhere.pem", **own), "no_file"),
    ):
        with refused("nats_monitor", Reason.DENIED, code) as caught:
            NatsMonitor(url, a_read_cost(), access).servers()
        assert "\n" not in caught.value.detail
