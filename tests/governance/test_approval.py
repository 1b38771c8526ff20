"""A second person's approval: what is carried out on it, and that nothing else passes for it."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

from runbook_lib.actions import action, proposals
from runbook_lib.actions.action import perform
from runbook_lib.book import messages
from runbook_lib.checks.context import Context
from runbook_lib.governance import approval
from runbook_lib.governance.ledger import Ledger
from runbook_lib.model.finding import Status, say
from runbook_lib.model.outcome import Outcome, Precondition
from runbook_lib.model.usage import UsageError
from runbook_lib.notebook.session import Session, quiet_session
from runbook_lib.packs.entitlement.actions.restart import check_cluster, check_cooldown
from runbook_lib.store import record
from runbook_lib.store.archive import ACTION, LOG, Archive
from runbook_lib.view import render
from tests.kit.actions import Counter, was_done
from tests.kit.command import runbook
from tests.kit.schemas import valid


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

    def open(self, incident: str = "A-1", target: str = "default", section: str = "5.1") -> Context:
        """As Aoki sees it."""
        self.as_login("aoki")
        return quiet_session(section, incident_id=incident, target=target).context

    def ask(self, action: Counter | None = None, rb: Context | None = None) -> str:
        """What Aoki's dry run asks for."""
        outcome = perform(action or Counting(), rb or self.open())
        (found,) = re.findall(r"request:[^\s)]+", why(outcome))
        return str(found)

    def approve(self, request: str = "", by: str = "sato", minutes: int = 30, *, agreed: bool = True) -> bool:
        """What somebody else says to it."""
        request = request or self.ask()
        self.as_login(by)
        found = approval.find_request(request, lambda incident: Archive(os.environ["RUNBOOK_OUTPUT"], incident))
        _, approved = approval.approve_request(*found, minutes, agreed=agreed)
        self.as_login("aoki")
        return approved

    def output(self, name: str) -> None:
        """As `--output` does."""
        os.environ["RUNBOOK_OUTPUT"] = str(self.folder / name)

    def lines(self, incident: str = "A-1") -> list[dict[str, Any]]:
        """The action log."""
        archive = Archive(os.environ["RUNBOOK_OUTPUT"], incident)
        return [valid(line, "action") for line in archive.lines(ACTION)]


@pytest.fixture
def world(no_settings: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setenv("RUNBOOK_CONFIG", str(tmp_path / "runbook.toml"))
    monkeypatch.setenv("RUNBOOK_OUTPUT", str(tmp_path / "out"))
    target = 'nats_url = "nats://127.0.0.1:1"\napproval = true\n'
    (tmp_path / "runbook.toml").write_text(f"[targets.default]\n{target}[targets.other]\n{target}")

    def as_login(name: str) -> None:
        known = Mock(return_value=SimpleNamespace(pw_name=name)) if name else Mock(side_effect=KeyError)
        monkeypatch.setattr(pwd, "getpwuid", known)

    return World(tmp_path, as_login)


def why(outcome: Outcome, lang: str = "en") -> str:
    return record.text(outcome.why)[lang]


def execute(world: World, action: Counter | None = None, **more: Any) -> Outcome:
    rb = more.pop("rb", None) or world.open()
    return perform(action or Counting(), rb, execute=True, reason="the worker hangs", **more)


def test_it_is_carried_out_on_the_approval_of_another(world: World) -> None:
    counter = Counting()
    dry = perform(counter, world.open())
    assert (dry.result, dry.status) == ("dry", Status.WARNING), "as things are it would be refused"
    (request,) = re.findall(r"runbook approve (request:\S+)", "\n".join(render.action_lines(dry)[2:]))
    assert not set(request) & set(" '\"$&;|<>*?#~`\\"), "a shell takes it as it stands"
    assert world.approve(request)
    ready = perform(counter, world.open())
    assert (ready.result, ready.status, ready.approved_by) == ("dry", Status.OK, "sato")
    done = execute(world, counter)
    assert (done.result, done.approved_by, counter.n) == ("done", "sato", 1)
    assert [(e["result"], e["who"], e["approved_by"]) for e in world.lines()] == [
        ("dry", "aoki", ""),
        ("approved", "sato", "sato"),
        ("dry", "aoki", "sato"),
        ("begun", "aoki", "sato"),
        ("done", "aoki", "sato"),
    ]
    assert Archive(str(world.folder / "out"), "A-1").problems() == []
    for lang, says in (("en", "approved by sato until "), ("ja", "sato が承認済みです")):
        with messages.using(lang):
            assert any(says in line for line in render.action_lines(done))


def test_without_an_approval_it_is_refused_and_told_how_to_ask(world: World) -> None:
    counter = Counting()
    outcome = execute(world, counter, approved_by="Sato")
    assert (outcome.result, counter.n) == ("refused", 0), "a name alone is nobody's approval"
    assert "needs an approval by a second person: runbook approve request:A-1:" in why(outcome)
    assert "第二の担当者の承認が必要です" in why(outcome, "ja")
    warned = perform(Counter(holds=None, warns=True), world.open())
    assert "request:A-1:" in why(warned), "what only warns can be asked for"
    for seen in (False, None):
        unready = perform(Counting(seen=(("postgres", seen),)), world.open())
        assert "request:" not in "\n".join(render.action_lines(unready)), "what would not be done is not asked for"
    (world.folder / "runbook.toml").write_text('[targets.default]\nnats_url = "nats://127.0.0.1:1"\n')
    assert execute(world, approved_by="Sato").result == "done", "a target that does not ask"


def test_numbers_may_move_between_dry_run_and_execution(world: World) -> None:
    world.approve(world.ask(Counting(seen=(("postgres", True), ("jetstream", True)))))
    assert execute(world, Counting(seen=(("jetstream", True), ("1,234 rows", True)))).result == "done"


def used(world: World) -> None:
    world.approve()
    assert execute(world).result == "done"


def replayed(world: World) -> Outcome:
    used(world)
    return execute(world)


def approved_twice(world: World) -> Outcome:
    request = world.ask()
    for by in ("sato", "mori"):
        world.approve(request, by)
    assert execute(world).result == "done"
    return execute(world)


def shortened_log(world: World) -> Outcome:
    """The lines about its use taken away from the incident's log: the target's ledger still has them."""
    world.approve()
    log = world.folder / "out" / "A-1" / LOG
    before = log.read_bytes()
    assert execute(world).result == "done"
    log.write_bytes(before)
    return execute(world)


def used_before_there_was_a_ledger(world: World) -> Outcome:
    used(world)
    shutil.rmtree(world.folder / "runbook-ledger")
    return execute(world)


def in_another_output(world: World) -> Outcome:
    world.approve()
    world.output("b")
    return execute(world)


def in_a_copy(world: World) -> Outcome:
    """The whole output folder copied: one of both is carried out."""
    world.approve()
    shutil.copytree(world.folder / "out", world.folder / "b")
    world.output("b")
    assert execute(world).result == "done"
    world.output("out")
    return execute(world)


def in_another_working_folder(world: World) -> Outcome:
    used(world)
    shutil.copytree(world.folder / "out", world.folder / "w" / "out")
    world.output("w/out")
    with chdir(world.folder / "w"):
        return execute(world)


def under_another_clock(world: World) -> Outcome:
    world.approve()
    was_done(world.open(), -31, "refused")  # in half an hour, as the clock shows it now
    return execute(world)


def too_late(world: World) -> Outcome:
    world.approve(minutes=-1)
    return execute(world)


def edited(world: World, **changes: Any) -> Outcome:
    """The approval's line, changed by hand."""
    world.approve()
    log = world.folder / "out" / "A-1" / LOG
    first, given = log.read_text().splitlines()
    log.write_text(f"{first}\n{json.dumps(json.loads(given) | changes)}\n")
    return execute(world)


def before_sudo(world: World) -> Outcome:
    world.approve()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUDO_USER", "Sato")
        return execute(world)


def executed(world: World, action: Counter | None = None, **context: str) -> Outcome:
    """What is approved is Aoki's restart of the counter."""
    world.approve()
    return execute(world, action, rb=world.open(**context))


def by_another_person(world: World, name: str = "mori") -> Outcome:
    """Or by nobody, in a pod: its user has no login, and the variables that name one are anybody's."""
    world.approve()
    rb = world.open()
    world.as_login(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER", "mori")
        return execute(world, rb=rb)


#: A kubectl of which only the context, its server and the cluster's id are asked.
KUBECTL = """#!/bin/sh
case "$*" in
  *current-context*) echo "$CONTEXT" ;;
  *"config view"*) echo "$SERVER" ;;
  *kube-system*) [ "$CLUSTER" ] || { echo "error: you may not"; exit 1; } >&2; echo "$CLUSTER" ;;
esac
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
    found = {"PATH": f"{world.folder}:{os.environ['PATH']}", "CONTEXT": "staging", "SERVER": "https://127.0.0.1:6443"}
    found["CLUSTER"] = changed.pop("was", "5ad2-1")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        asks = world.open().in_one_cluster()
        world.approve(world.ask(Workload(asks), asks))
        for name, value in changed.items():
            patch.setenv(name, value)
        rb = world.open().in_one_cluster()
        return execute(world, Workload(rb), rb=rb)


MISUSE: dict[str, tuple[Callable[[World], Outcome], str]] = {
    "replay": (replayed, "the approval by sato was used before"),
    "replay-of-a-second-one": (approved_twice, "the approval by mori was used before"),
    "replay-after-the-log-was-shortened": (shortened_log, "the approval by sato was used before"),
    "replay-without-a-ledger": (used_before_there_was_a_ledger, "the approval by sato was used before"),
    "replay-in-a-copy": (in_a_copy, "the approval by sato was used before"),
    "replay-in-another-folder": (in_another_working_folder, "the approval by sato was used before"),
    "another-output": (in_another_output, "needs an approval by a second person"),
    "expired": (too_late, "the approval by sato expired at "),
    "clock-set-back": (under_another_clock, "this machine's clock is behind a line of "),
    "other-arguments": (lambda w: executed(w, Counting("x")), "a different action: its arguments differ"),
    "other-action": (lambda w: executed(w, Counting(name="scale")), "a different action: it is for another action"),
    "other-target": (lambda w: executed(w, target="other"), "a different action: it is for another target"),
    "other-incident": (lambda w: executed(w, incident="B-2"), "needs an approval by a second person"),
    "other-section": (lambda w: executed(w, section="5.2"), "it is from another section"),
    "other-person": (by_another_person, "a different action: it is for another person"),
    "by-nobody": (lambda w: by_another_person(w, ""), "nobody is known by name here"),
    "changed-preconditions": (
        lambda w: executed(w, Counting(seen=(("postgres", True),))),
        "a different action: its preconditions were different; new: postgres",
    ),
    "other-cluster": (lambda w: in_another_cluster(w, CONTEXT="production"), "a different action: its command differs"),
    "other-cluster-of-the-same-name": (
        lambda w: in_another_cluster(w, SERVER="https://production.example"),
        "a different action: its preconditions were different",
    ),
    "other-cluster-behind-the-same-address": (
        lambda w: in_another_cluster(w, CLUSTER="5ad2-2"),
        "a different action: its preconditions were different",
    ),
    "own": (lambda w: edited(w, who="aoki", approved_by="aoki"), "aoki has the login of the person who acts"),
    "own-by-another-name": (lambda w: edited(w, who="aoki"), "sato has the login of the person who acts"),
    "own-before-sudo": (before_sudo, "sato has the login of the person who acts"),
    "edited": (lambda w: edited(w, command="count twice"), "a different action: its command differs"),
    "copied-from-another-incident": (
        lambda w: edited(w, approval=f"request:B-2:{'0' * 12}:{'0' * 64}"),
        "a different action: it is for another incident",
    ),
    "no-end": (lambda w: edited(w, until=None), f"out/A-1/{LOG}: an approval in it is not valid"),
    "nobody-acts": (lambda w: edited(w, asked_by=None), "a different action: it is for another person"),
    "of-another-form": (lambda w: edited(w, approval=7), f"out/A-1/{LOG}: an approval in it is not valid"),
}


@pytest.mark.parametrize("misuse", MISUSE)
def test_misuse_is_refused_in_one_line_that_stands_in_the_log(misuse: str, world: World) -> None:
    happens, says = MISUSE[misuse]
    outcome = happens(world)
    assert outcome.result == "refused" and says in why(outcome), why(outcome)
    assert "\n" not in why(outcome) and why(outcome, "ja")
    last = Archive(os.environ["RUNBOOK_OUTPUT"], "B-2" if misuse == "other-incident" else "A-1").lines(ACTION)[-1]
    assert (last["result"], last["why"]) == ("refused", record.text(outcome.why))


def test_an_approval_holds_in_the_cluster_that_was_approved(world: World) -> None:
    done = in_another_cluster(world)
    assert done.result == "done" and "kubectl --context staging -n" in done.command
    assert [p.identity for p in done.preconditions if p.identity] == ["staging https://127.0.0.1:6443 5ad2-1"]
    assert "https://127.0.0.1:6443 5ad2-1" in "\n".join(render.action_lines(done))
    unseen = in_another_cluster(world, was="")
    assert unseen.result == "done" and "cannot be read (error: you may not)" in "\n".join(render.action_lines(unseen))


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
    world.approve()
    before = Ledger(world.open()).read()
    monkeypatch.setattr(Ledger, "read", lambda self: before)  # what both have read
    counters = [Counting(), Counting()]
    outcomes = [execute(world, counter) for counter in counters]
    assert [(o.result, c.n) for o, c in zip(outcomes, counters, strict=True)] == [("done", 1), ("refused", 0)]
    assert "was used before" in why(outcomes[1])


def test_an_action_on_what_another_changed_meanwhile_is_refused(world: World) -> None:
    class Named(Counting):
        def what(self) -> dict[str, Any]:
            return {"workload": "notification", "name": "notification"}

    class Slow(Named):
        def state(self, rb: Context) -> dict[str, Any]:
            if not other.n:  # between its checks and its beginning, another person acts
                assert execute(world, other).result == "done"
            return super().state(rb)

    other, slow = Named(), Slow()
    for request in [world.ask(Named()), world.ask(Named())]:
        world.approve(request)
    outcome = execute(world, slow)
    assert (outcome.result, slow.n) == ("refused", 0) and "another action on notification" in why(outcome)
    assert execute(world, Named()).result == "done", "later it may"


def test_a_second_incident_does_not_restart_what_the_first_has_just_restarted(world: World) -> None:
    class Restarting(Counting):
        def what(self) -> dict[str, Any]:
            return {"workload": "notification", "name": "notification"}

        def preconditions(self, rb: Context) -> list[Precondition]:
            return check_cooldown(rb, "notification")

    first, second = world.open(), world.open(incident="B-2")
    world.approve(world.ask(Restarting(), first))
    assert execute(world, Restarting(), rb=first).result == "done"
    refused = perform(Restarting(), second)
    assert "notification was not restarted within the last 60 s by an action on this target" in why(refused)
    assert [p.ok for p in refused.preconditions if "not_just_changed" in p.text.key] == [False]
    other = perform(Restarting(), world.open(incident="B-2", target="other"))
    assert [p.ok for p in other.preconditions if "not_just_changed" in p.text.key] == [True]


def test_one_approval_is_one_action_whatever_output_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the way that command, notebook and lab take: the same act under three outputs, one of them a whole copy."""
    counter = Counting()
    monkeypatch.setattr(action, "actions", lambda: {"restart": lambda rb: counter})
    world.approve()
    shutil.copytree(world.folder / "out", world.folder / "c")
    results = []
    for output in ("out", "b", "c"):
        world.output(output)
        acted = Session(world.open()).act("restart", execute=True, reason="the worker hangs")
        results.append(acted.outcome.result)
    assert (results, counter.n) == (["done", "refused", "refused"], 1)
    kept = Archive(str(world.folder / "runbook-ledger"), "default")
    assert [(e["result"], e["approved_by"], e["place"]) for e in kept.lines(ACTION)] == [
        (result, "sato", str(world.folder / "out" / "A-1")) for result in ("begun", "done")
    ]
    assert kept.problems() == []


def test_what_was_refused_may_be_tried_again(world: World) -> None:
    world.approve()
    assert perform(Counting(), world.open(), execute=True).result == "refused", "no reason"
    assert execute(world, Counting(seen=(("postgres", False),))).result == "refused"
    assert execute(world).result == "done"


REFUSED: dict[str, tuple[Callable[[World], bool], str]] = {
    "declined": (lambda w: w.approve(agreed=False), "sato declined to approve it"),
    "own-login": (lambda w: w.approve(by="Aoki"), "Aoki has the login of the person who acts"),
    "nobody": (lambda w: w.approve(by=""), "nobody is known by name here"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_approval_that_is_not_given_stands_in_the_log(name: str, world: World) -> None:
    happens, says = REFUSED[name]
    assert not happens(world)
    last = world.lines()[-1]
    assert last["result"] == "refused" and says in last["why"]["en"]
    assert execute(world).result == "refused"


def test_only_what_was_asked_for_can_be_approved(world: World) -> None:
    request = world.ask()
    log = world.folder / "out" / "A-1" / LOG
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


def test_the_command_shows_asks_and_tells(world: World) -> None:
    """In another process, whose login is that of the tests."""
    request = world.ask()
    env = {**os.environ}
    yes = runbook("approve", request, "--lang", "ja", env=env, stdin="y\n")
    assert yes.returncode == 0, yes.stderr
    assert "aoki が承認を求めています" in yes.stdout and "    count\n  ✔ " in yes.stdout
    assert yes.stdout.splitlines()[-1].startswith("seal:A-1:")
    assert execute(world).result == "done"
    cut = runbook("approve", request[:-1], env=env)
    assert (cut.returncode, cut.stdout) == (64, "") and cut.stderr.count("\n") == 1
    alone = runbook("approve", world.ask(), env=env)
    assert alone.returncode == 2 and "declined to approve it" in alone.stdout, "nobody was there to be asked"
