"""A second person's word: what is carried out on it, and that nothing else passes for it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from runbook_lib.actions import action, proposals
from runbook_lib.actions.action import perform
from runbook_lib.book import messages, parameters
from runbook_lib.checks.context import Context
from runbook_lib.governance import approval, ledger, sign
from runbook_lib.governance.approval import Approval
from runbook_lib.model.finding import Status, say
from runbook_lib.model.outcome import Outcome, Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement.actions.restart import check_cluster, check_cooldown
from runbook_lib.sources import settings
from runbook_lib.sources.settings import Signing
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION_LOG, Archive
from runbook_lib.view import render
from tests.kit.actions import Counter, around, was_done
from tests.kit.command import runbook
from tests.kit.keys import AOKI, KNOWN, SATO, pem, public

MORI = Ed25519PrivateKey.from_private_bytes(bytes([3]) * 32)
EVERYBODY = KNOWN | {"mori": public(MORI)}


class Counting(Counter):
    """A counter that is told what it is about, and what stands before it."""

    def __init__(
        self, about: str = "counter", name: str = "restart", seen: tuple[tuple[str, bool | None], ...] = ()
    ) -> None:
        super().__init__()
        self.about, self.name, self.seen = about, name, seen

    def what(self) -> dict[str, Any]:
        return {"workload": self.about}

    def preconditions(self, rb: Context) -> list[Precondition]:
        more = [Precondition(say("action.restart.answers", source=source), ok) for source, ok in self.seen]
        return [*super().preconditions(rb), *more]


@dataclass
class World:
    """A target that asks for a second person, Aoki who acts, and Sato and Mori who may approve."""

    folder: Path
    as_login: Callable[[str], None]

    def configure(self, approvers: dict[str, str] = EVERYBODY, more: str = "") -> None:
        """Write runbook.toml."""
        named = "".join(f'{name} = "{key}"\n' for name, key in approvers.items())
        target = 'nats_url = "nats://127.0.0.1:1"\napproval = true\n'
        (self.folder / "runbook.toml").write_text(
            f"[targets.default]\n{target}[targets.other]\n{target}[approvers]\n{named}{more}"
        )

    def open(self, incident: str = "A-1", target: str = "default", section: str = "5.1") -> Context:
        """As Aoki sees it."""
        self.as_login("aoki")
        return quiet_session(section, incident_id=incident, target=target).context

    def ask(self, action: Counter | None = None, rb: Context | None = None) -> str:
        """What Aoki's dry run asks for."""
        outcome = perform(action or Counting(), rb or self.open())
        (found,) = re.findall(r"request:\S+", why(outcome))
        return str(found)

    def approve(self, request: str = "", by: str = "sato", minutes: int = 30, **more: Any) -> str:
        """What somebody else says to it."""
        request = request or self.ask()
        key = self.folder / "key.pem"
        key.write_bytes(pem({"aoki": AOKI, "sato": SATO, "mori": MORI}[by]))
        self.as_login(more.get("login", by))
        found = approval.find_request(request, lambda incident: Archive(str(self.folder / "out"), incident))
        _, word = approval.approve_request(*found, key, minutes, settings.load(), agreed=more.get("agreed", True))
        self.as_login("aoki")
        return word

    def forge(self, request: str, by: str, key: str) -> str:
        """An approval that `runbook approve` would not give: signed with a key at hand, under any name."""
        (self.folder / "key.pem").write_bytes(pem({"aoki": AOKI, "sato": SATO}[key]))
        until = datetime.now(UTC) + timedelta(minutes=5)
        word = Approval(*request.split(":")[1:], until, by, "")  # type: ignore[call-arg, arg-type]
        known = Signing(key_file=self.folder / "key.pem", keys=EVERYBODY)
        return str(replace(word, signature=sign.sign(word.signed, known)[1]))

    def output(self, name: str) -> None:
        """As `--output` does."""
        os.environ["RUNBOOK_OUTPUT"] = str(self.folder / name)

    def lines(self, incident: str = "A-1") -> list[dict[str, Any]]:
        """The action log."""
        return Archive(os.environ["RUNBOOK_OUTPUT"], incident).lines(ACTION_LOG)


@pytest.fixture
def world(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("RUNBOOK_CONFIG", str(tmp_path / "runbook.toml"))
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    monkeypatch.setattr(parameters, "_key_holder", ContextVar("key_holder", default=""))
    world = World(tmp_path, parameters.identify)
    world.configure()
    return world


def why(outcome: Outcome, lang: str = "en") -> str:
    return record.text(outcome.why)[lang]


def execute(world: World, word: str | None, action: Counter | None = None, **more: Any) -> Outcome:
    rb = more.pop("rb", None) or world.open()
    return perform(action or Counting(), rb, execute=True, reason="the worker hangs", approved=word, **more)


def test_it_is_carried_out_on_the_word_of_another(world: World) -> None:
    counter = Counting()
    dry = perform(counter, world.open())
    assert (dry.result, dry.status) == ("dry", Status.WARNING), "as things are it would be refused"
    (request,) = re.findall(r"runbook approve (request:\S+) --key-file", "\n".join(render.action_lines(dry)[2:]))
    word = world.approve(request)
    assert not set(word + request) & set(" '\"$&;|<>*?#~`\\"), "a shell takes it as it stands"
    done = execute(world, word, counter)
    assert (done.result, done.approved_by, done.break_glass, counter.n) == ("done", "sato", False, 1)
    assert [(e["result"], e["who"], e["approved_by"]) for e in world.lines()] == [
        ("dry", "aoki", ""),
        ("approved", "sato", "sato"),
        ("begun", "aoki", "sato"),
        ("done", "aoki", "sato"),
    ]
    assert [e["approval"] for e in world.lines()] == ["", word, word, word], "whoever has the keys can check it later"
    assert Archive(str(world.folder / "out"), "A-1").problems() == []
    for lang, says in (("en", "approved by sato until "), ("ja", "sato が承認済みです")):
        with messages.using(lang):
            assert any(says in line for line in render.action_lines(done))


def test_without_a_word_it_is_refused_and_told_how_to_ask(world: World) -> None:
    counter = Counting()
    outcome = execute(world, None, counter, approved_by="Sato")
    assert (outcome.result, counter.n) == ("refused", 0), "a name alone is nobody's word"
    assert "needs an approval by a second person: runbook approve request:A-1:" in why(outcome)
    assert "第二の担当者の承認が必要です" in why(outcome, "ja")
    warned = perform(Counter(holds=None, warns=True), world.open())
    assert "request:A-1:" in why(warned), "what only warns can be asked for"
    for seen in (False, None):
        unready = perform(Counting(seen=(("postgres", seen),)), world.open())
        assert "request:" not in "\n".join(render.action_lines(unready)), "what would not be done is not asked for"
    world.configure(more="")
    (world.folder / "runbook.toml").write_text('[targets.default]\nnats_url = "nats://127.0.0.1:1"\n')
    free = perform(Counting(), world.open(), execute=True, approved_by="Sato", reason="the worker hangs")
    assert free.result == "done", "a target that does not ask"


def test_numbers_may_move_between_dry_run_and_execution(world: World) -> None:
    word = world.approve(world.ask(Counting(seen=(("postgres", True), ("jetstream", True)))))
    assert execute(world, word, Counting(seen=(("jetstream", True), ("1,234 rows", True)))).result == "done"


def used(world: World) -> str:
    """An approval that was used."""
    word = world.approve()
    assert execute(world, word).result == "done"
    return word


def replayed(world: World) -> Outcome:
    return execute(world, used(world))


def approved_twice(world: World) -> Outcome:
    request = world.ask()
    words = [world.approve(request, by) for by in ("sato", "mori")]
    return [execute(world, word) for word in words][-1]


def shortened_log(world: World) -> Outcome:
    """The lines about its use taken away from the incident's log: the target's ledger still has them."""
    word = world.approve()
    log = world.folder / "out" / "A-1" / ACTION_LOG
    before = log.read_bytes()
    assert execute(world, word).result == "done"
    log.write_bytes(before)
    return execute(world, word)


def used_before_there_was_a_ledger(world: World) -> Outcome:
    word = used(world)
    shutil.rmtree(world.folder / "runbook-ledger")
    return execute(world, word)


def in_another_output(world: World) -> Outcome:
    word = world.approve()
    world.output("b")
    return execute(world, word)


def in_a_copy(world: World) -> Outcome:
    """The whole output folder copied: one of both is carried out."""
    word = world.approve()
    shutil.copytree(world.folder / "out", world.folder / "b")
    world.output("b")
    assert execute(world, word).result == "done"
    world.output("out")
    return execute(world, word)


def in_another_working_folder(world: World) -> Outcome:
    word = used(world)
    shutil.copytree(world.folder / "out", world.folder / "w" / "out")
    world.output("w/out")
    with chdir(world.folder / "w"):
        return execute(world, word)


def under_another_clock(world: World) -> Outcome:
    word = world.approve()
    was_done(world.open(), -31, "refused")  # in half an hour, as the clock shows it now
    return execute(world, word)


def by_a_removed_key(world: World) -> Outcome:
    word = world.approve()
    world.configure({"mori": EVERYBODY["mori"]})
    return execute(world, word)


def by_a_changed_key(world: World) -> Outcome:
    word = world.approve()
    world.configure(EVERYBODY | {"sato": EVERYBODY["mori"]})
    return execute(world, word)


def by_ones_own_second_name(world: World) -> Outcome:
    world.configure({"another": KNOWN["aoki"]}, f'[sign.keys]\naoki = "{KNOWN["aoki"]}"\n')
    return execute(world, world.forge(world.ask(), "another", "aoki"))


def by_ones_own_second_approver(world: World) -> Outcome:
    """One key under two names of [approvers], one of them the login."""
    world.configure({"another": KNOWN["aoki"], "aoki": KNOWN["aoki"]})
    return execute(world, world.forge(world.ask(), "another", "aoki"))


def before_sudo(world: World) -> Outcome:
    word = world.approve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUDO_USER", "Sato")
        return execute(world, word)


def by_the_systems_login(world: World) -> Outcome:
    name = pwd.getpwuid(os.getuid()).pw_name
    world.configure({name: KNOWN["sato"]})
    return execute(world, world.forge(world.ask(), name, "sato"))


def altered(world: World, old: str, new: str) -> Outcome:
    return execute(world, re.sub(old, new, world.approve(), count=1))


def executed(world: World, action: Counter | None = None, **context: str) -> Outcome:
    """What is approved is Aoki's restart of the counter."""
    return execute(world, world.approve(), action, rb=world.open(**context))


def by_another_person(world: World) -> Outcome:
    word, rb = world.approve(), world.open()
    world.as_login("mori")
    return execute(world, word, rb=rb)


def by_nobody(world: World) -> Outcome:
    """In a pod: its user has no login, and the variables that name one are anybody's."""
    word, rb = world.approve(), world.open()
    world.as_login("")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pwd, "getpwuid", Mock(side_effect=KeyError))
        patch.setenv("USER", "mori")
        return execute(world, word, rb=rb)


def test_a_key_names_its_holder(world: World) -> None:
    key = world.folder / "mori.pem"
    key.write_bytes(pem(MORI))
    assert sign.key_holder(key, settings.load()) == "mori"
    world.configure({"sato": KNOWN["sato"]})
    with pytest.raises(UsageError, match=r"--key-file is not listed in \[approvers\] or \[sign.keys\]"):
        sign.key_holder(key, settings.load())


#: A kubectl of which only the context and its server are asked.
KUBECTL = """#!/bin/sh
case "$*" in *current-context*) echo "$CONTEXT" ;; *"config view"*) echo "$SERVER" ;; esac
"""


class Workload(Counting):
    """A counter that runs in the cluster of kubectl's context."""

    def __init__(self, rb: Context) -> None:
        super().__init__()
        self.rb = rb

    def command(self) -> str:
        return proposals.restart(self.rb, "notification").command

    def preconditions(self, rb: Context) -> list[Precondition]:
        return [*super().preconditions(rb), *check_cluster(rb)]


def in_another_cluster(world: World, **changed: str) -> Outcome:
    """Approved for the context "staging"; kubectl's configuration changes before it is carried out."""
    (world.folder / "kubectl").write_text(KUBECTL)
    (world.folder / "kubectl").chmod(0o755)
    found = {"PATH": f"{world.folder}:{os.environ['PATH']}", "CONTEXT": "staging", "SERVER": "https://staging.example"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        asks = world.open().in_one_cluster()
        request = world.ask(Workload(asks), asks)
        word = world.approve(request)
        for name, value in changed.items():
            patch.setenv(name, value)
        rb = world.open().in_one_cluster()
        return execute(world, word, Workload(rb), rb=rb)


MISUSE: dict[str, tuple[Callable[[World], Outcome], str]] = {
    "replay": (replayed, "the approval by sato was used before"),
    "replay-of-a-second-one": (approved_twice, "the approval by mori was used before"),
    "replay-after-the-log-was-shortened": (shortened_log, "the approval by sato was used before"),
    "replay-without-a-ledger": (used_before_there_was_a_ledger, "the approval by sato was used before"),
    "replay-in-a-copy": (in_a_copy, "the approval by sato was used before"),
    "replay-in-another-folder": (in_another_working_folder, "the approval by sato was used before"),
    "other-output": (in_another_output, "the dry run that sato approved is not in "),
    "expired": (lambda w: execute(w, w.approve(minutes=-1)), "the approval by sato expired at "),
    "clock-set-back": (under_another_clock, "this machine's clock is behind a line of "),
    "other-arguments": (lambda w: executed(w, Counting("x")), "a different action: its arguments differ"),
    "other-action": (lambda w: executed(w, Counting(name="scale")), "a different action: it is for another action"),
    "other-target": (lambda w: executed(w, target="other"), "a different action: it is for another target"),
    "other-incident": (lambda w: executed(w, incident="B-2"), "a different action: it is for another incident"),
    "other-section": (lambda w: executed(w, section="5.2"), "it is from another section"),
    "other-person": (by_another_person, "a different action: it is for another person"),
    "by-nobody": (by_nobody, "nobody is known by name here"),
    "changed-preconditions": (
        lambda w: executed(w, Counting(seen=(("postgres", True),))),
        "a different action: its preconditions were different; new: postgres",
    ),
    "other-cluster": (lambda w: in_another_cluster(w, CONTEXT="production"), "a different action: its command differs"),
    "other-cluster-of-the-same-name": (
        lambda w: in_another_cluster(w, SERVER="https://production.example"),
        "a different action: its preconditions were different",
    ),
    "own": (lambda w: execute(w, w.forge(w.ask(), "aoki", "aoki")), "aoki has the login or key of the person who acts"),
    "own-by-another-name": (by_ones_own_second_name, "another has the login or key of the person who acts"),
    "own-by-another-approver": (by_ones_own_second_approver, "another has the login or key of the person who acts"),
    "own-before-sudo": (before_sudo, "sato has the login or key of the person who acts"),
    "own-by-the-system": (by_the_systems_login, "has the login or key of the person who acts"),
    "forged-by-who-acts": (lambda w: execute(w, w.forge(w.ask(), "sato", "aoki")), "signature of the approval is not"),
    "forged-name": (lambda w: altered(w, ":sato:", ":mori:"), "the signature of the approval is not by mori"),
    "forged-time": (lambda w: altered(w, r":2\d{7}T", ":29990101T"), "the signature of the approval is not by sato"),
    "forged-digest": (lambda w: altered(w, r":[0-9a-f]{64}:", f":{'0' * 64}:"), "the signature of the approval is not"),
    "unknown-name": (lambda w: altered(w, ":sato:", ":nobody:"), "the approver nobody is not in [approvers]"),
    "removed-key": (by_a_removed_key, "the approver sato is not in [approvers]"),
    "changed-key": (by_a_changed_key, "the signature of the approval is not by sato"),
    "no-day": (lambda w: altered(w, r":2\d{7}T", ":20269999T"), "contains no approval"),
    "cut-off": (lambda w: execute(w, w.approve()[:-1]), "--approval contains no approval"),
    "garbage": (lambda w: execute(w, "yes\0please"), "--approval contains no approval"),
    "a-request": (lambda w: execute(w, w.ask()), "--approval contains no approval"),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_is_refused_in_one_line_that_stands_in_the_log(misuse: str, world: World) -> None:
    happens, says = MISUSE[misuse]
    outcome = happens(world)
    assert outcome.result == "refused" and says in why(outcome), why(outcome)
    assert "\n" not in why(outcome) and why(outcome, "ja")
    incident = "B-2" if misuse == "other-incident" else "A-1"
    last = world.lines(incident)[-1]
    assert (last["result"], last["why"]) == ("refused", record.text(outcome.why))
    assert last["approval"] == outcome.approval and (last["approval"] or "contains no approval" in says)


def test_an_approval_holds_in_the_cluster_that_was_approved(world: World) -> None:
    done = in_another_cluster(world)
    assert done.result == "done" and "kubectl --context staging -n" in done.command
    assert [p.identity for p in done.preconditions if p.identity] == ["staging https://staging.example"]
    assert "https://staging.example" in "\n".join(render.action_lines(done))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("restart", {"workload": "entitlement"}),
        ("scale", {"workload": "notification", "replicas": 0}),
        ("set", {"settings": {"delivery.batch_size": 10}}),
    ],
)
def test_each_command_to_the_cluster_names_it(world: World, name: str, what: dict[str, Any]) -> None:
    rb = world.open()
    facts = rb.facts.model_copy(update={"workloads": rb.facts.workloads.model_copy(update={"context": "staging"})})
    named = replace(rb, target=rb.target.model_copy(update={"facts": facts}))
    assert action.actions()[name](named, **what).command().startswith("kubectl --context staging -n ")


def test_of_two_at_the_same_moment_one_is_carried_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    word = world.approve()
    before = ledger.read_actions(world.open())
    monkeypatch.setattr(ledger, "read_actions", lambda rb: before)  # what both have read
    counters = [Counting(), Counting()]
    outcomes = [execute(world, word, counter) for counter in counters]
    assert [(o.result, c.n) for o, c in zip(outcomes, counters, strict=True)] == [("done", 1), ("refused", 0)]
    assert "was used before" in why(outcomes[1])


def test_an_action_on_what_another_changed_meanwhile_is_refused(world: World) -> None:
    class Named(Counting):
        def what(self) -> dict[str, Any]:
            return {"workload": "notification", "name": "notification"}

    class Slow(Named):
        def state(self, rb: Context) -> dict[str, Any]:
            if not other.n:  # between its checks and its beginning, another person acts
                assert execute(world, approved(), other).result == "done"
            return super().state(rb)

    def approved() -> str:
        return world.approve(world.ask(Named()))

    other, slow = Named(), Slow()
    outcome = execute(world, approved(), slow)
    assert (outcome.result, slow.n) == ("refused", 0) and "another action on notification" in why(outcome)
    assert execute(world, approved(), Named()).result == "done", "later it may"


def test_a_second_incident_does_not_restart_what_the_first_has_just_restarted(world: World) -> None:
    class Restarting(Counting):
        def what(self) -> dict[str, Any]:
            return {"workload": "notification", "name": "notification"}

        def preconditions(self, rb: Context) -> list[Precondition]:
            return [check_cooldown(rb, "notification")]

    first, second = world.open(), world.open(incident="B-2")
    assert execute(world, world.approve(world.ask(Restarting(), first)), Restarting(), rb=first).result == "done"
    refused = perform(Restarting(), second)
    assert "notification was not restarted within the last 60 s by an action on this target" in why(refused)
    assert [p.ok for p in refused.preconditions if "not_just_changed" in p.text.key] == [False]
    other = perform(Restarting(), world.open(incident="B-2", target="other"))
    assert [p.ok for p in other.preconditions if "not_just_changed" in p.text.key] == [True]


def test_one_approval_is_one_action_whatever_output_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the way that command, notebook and lab take: the same act under three outputs, one of them a whole copy."""
    counter = Counting()
    monkeypatch.setattr(action, "actions", lambda: {"restart": lambda rb: counter})
    word = world.approve()
    shutil.copytree(world.folder / "out", world.folder / "c")
    results = []
    for output in ("out", "b", "c"):
        world.output(output)
        acted = Session(world.open()).act("restart", execute=True, reason="the worker hangs", approval=word)
        results.append(acted.outcome.result)
    assert (results, counter.n) == (["done", "refused", "refused"], 1)
    kept = Archive(str(world.folder / "runbook-ledger"), "default")
    assert [(e["result"], e["approval"], e["place"]) for e in kept.lines(ACTION_LOG)] == [
        (result, word, str(world.folder / "out" / "A-1")) for result in ("begun", "done")
    ]
    assert kept.problems() == []


def test_who_was_removed_since_the_section_was_opened_approves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "actions", lambda: {"restart": lambda rb: Counting()})
    word, rb = world.approve(), Session(world.open())
    world.configure({"mori": EVERYBODY["mori"]})
    outcome = rb.act("restart", execute=True, reason="the worker hangs", approval=word).outcome
    assert outcome.result == "refused" and "the approver sato is not in [approvers]" in why(outcome)


def test_what_was_refused_may_be_tried_again(world: World) -> None:
    word = world.approve()
    assert perform(Counting(), world.open(), execute=True, approved=word).result == "refused", "no reason"
    assert execute(world, word, Counting(seen=(("postgres", False),))).result == "refused"
    assert execute(world, word).result == "done"


def test_break_glass_is_marked_and_uses_no_approval_up(world: World) -> None:
    word, rb, counter = world.approve(), world.open(), Counting()
    shut = execute(world, None, counter, approved_by="Aoki", break_glass=True)
    assert (shut.result, counter.n) == ("refused", 0) and "does not allow --break-glass" in why(shut)
    allowed = replace(rb, target=rb.target.model_copy(update={"break_glass": True}))
    broken = execute(world, None, counter, rb=allowed, approved_by="Aoki", break_glass=True)
    assert (broken.result, broken.break_glass) == ("done", True)
    assert why(broken).startswith("BREAK-GLASS although target default needs an approval by a second person")
    forged = execute(world, word[:-3] + "AAA", counter, rb=allowed, approved_by="Aoki", break_glass=True)
    assert (forged.result, forged.break_glass, forged.approved_by) == ("done", True, "Aoki")
    assert why(forged).startswith("BREAK-GLASS although the signature of the approval is not by sato")
    kept = execute(world, word, counter, rb=allowed, break_glass=True)
    assert (kept.result, kept.break_glass, counter.n) == ("done", False, 3), "with a word that holds nothing is broken"
    frozen = replace(allowed, target=allowed.target.model_copy(update={"freeze": [around(datetime.now(UTC))]}))
    (request,) = set(re.findall(r"request:\S+", why(perform(Counting(), frozen, break_glass=True))))
    assert execute(world, world.approve(request), rb=frozen).result == "refused"
    both = execute(world, world.approve(request), rb=frozen, break_glass=True)
    assert (both.result, both.approved_by, both.break_glass) == ("done", "sato", True), "Sato has seen it broken"


REFUSED: dict[str, tuple[Callable[[World], str], str]] = {
    "declined": (lambda w: w.approve(agreed=False), "sato declined to approve it"),
    "own-login": (lambda w: w.approve(login="aoki"), "sato has the login or key of the person who acts"),
    "own-key": (lambda w: w.approve(by="aoki", login="sato"), "aoki has the login or key of the person who acts"),
    "unlisted": (lambda w: (w.configure({}), w.approve())[1], "is not listed in [approvers]"),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_approval_that_is_not_given_stands_in_the_log(name: str, world: World) -> None:
    happens, says = REFUSED[name]
    assert happens(world) == ""
    last = world.lines()[-1]
    assert (last["result"], last["approval"]) == ("refused", "") and says in last["why"]["en"]


def test_only_what_was_asked_for_can_be_approved(world: World) -> None:
    request = world.ask()
    log = world.folder / "out" / "A-1" / ACTION_LOG
    for old, new in (("counter", "everything"), ('"aoki"', '"mori"'), ('"ok": true', '"ok": null')):
        whole = log.read_text()
        assert old in whole
        log.write_text(whole.replace(old, new))
        with pytest.raises(UsageError, match="no such request, or its line was changed"):
            world.approve(request)
        log.write_text(whole)
    shown = render.request_lines("A-1", world.lines()[0] | {"command": "count \x1b[2K\u202e\n all"})
    assert shown[1] == r"    count \x1b[2K\u202e\n all", "a terminal is told nothing that it does not show"
    for garbage in ("", "request:A-1", request[:-1], f"{request} please"):
        with pytest.raises(UsageError, match="the request is not complete"):
            world.approve(garbage or "x")


def test_the_command_shows_asks_and_tells(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    request, key = world.ask(), world.folder / "sato.pem"
    key.write_bytes(pem(SATO))
    env = {**os.environ}
    yes = runbook("approve", request, "--key-file", str(key), "--lang", "ja", env=env, stdin="y\n")
    assert yes.returncode == 0, yes.stderr
    assert "aoki が承認を求めています" in yes.stdout and "    count\n  ✔ " in yes.stdout and "PRIVATE" not in yes.stdout
    *_, word, told = yes.stdout.splitlines()
    assert word.startswith("approval:A-1:") and told.startswith("seal:A-1:")
    (world.folder / "mail.txt").write_text(f"> {yes.stdout}\nregards")
    monkeypatch.setattr(action, "actions", lambda: {"restart": lambda rb: Counting()})
    given = {"reason": "the worker hangs", "approval": str(world.folder / "mail.txt")}
    assert Session(world.open()).act("restart", execute=True, **given).outcome.result == "done"  # type: ignore[arg-type]
    cut = runbook("approve", request[:-1], "--key-file", str(key), env=env)
    assert (cut.returncode, cut.stdout) == (64, "") and cut.stderr.count("\n") == 1
    alone = runbook("approve", request, "--key-file", str(key), env=env)
    assert alone.returncode == 2 and "declined to approve it" in alone.stdout, "nobody was there to be asked"


def test_the_words_are_there_in_both_languages() -> None:
    for lang in messages.LANGUAGES:
        there = {k.rsplit(".", 1)[1] for k in messages.catalogue(lang) if k.startswith("action.approval.differs.")}
        assert there == {*approval._BOUND, "preconditions", "incident", "unknown"}
