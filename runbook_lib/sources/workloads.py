"""The system's workloads through the tool that runs them: logs, pods, variables, a restart.

Argument vectors only, no shell. The allowed commands are the list `Runner.verbs`, checked in one place,
`Runner._run_verb`; output is limited and counted in the read cost. What leaves this module of it is masked: JSON and
logs are parsed first, since most of them is not kept.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from runbook_lib.book import pack
from runbook_lib.model.finding import Reason
from runbook_lib.privacy import redaction
from runbook_lib.sources import logs
from runbook_lib.sources.logs import Log
from runbook_lib.sources.settings import WorkloadSettings
from runbook_lib.sources.source import Opening, ReadCost, SourceError

T = TypeVar("T")

error = partial(SourceError, "workloads")
READ_TIMEOUT_S, CHANGE_TIMEOUT_S = 15.0, 45.0
#: Seconds for which a workload that was read is not read again.
SAME_S = 5.0
LOG_BYTES, OTHER_BYTES = 20_000_000, 4_000_000
#: The newest lines of a log; less where they are more than LOG_BYTES.
LOG_LINES = (50_000, 10_000, 2_000)

#: The names of Kubernetes; the other runners' are among them or nearly so. None begins with a dash.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{0,1000}")
_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*=[A-Za-z0-9._-]*,?)+")
_SECRET = re.compile(
    r"passw|passphrase|secret|token|credential|(?:api|access|auth|encryption|private|signing)_?key"
    r"|(?:^|_)(?:pass|pwd|jwt|seed|key)$",
    re.IGNORECASE,
)
_MASKED = "***"


@dataclass(frozen=True)
class CommandOutput:
    """The exit code of a command and its output: `out` is masked, `raw_out` and `raw_err` are for parsers only."""

    code: int
    raw_out: str = field(repr=False)
    raw_err: str = field(repr=False)
    mask: Callable[[str], str] = field(repr=False)

    @property
    def out(self) -> str:
        """What it printed, masked."""
        return self.mask(self.raw_out)

    @property
    def problem(self) -> str:
        """Its last line of complaint, masked."""
        said = self.raw_err.strip() or self.raw_out.strip() or f"exit code {self.code}"
        return self.mask(said[-redaction.LONGEST :]).splitlines()[-1].strip()[:300]


Words = tuple[str, ...]


class Commands(ABC):
    """The commands of one tool: words for the runner that starts them, `line` as a person types them."""

    def __init__(self, settings: WorkloadSettings) -> None:
        self._settings = settings

    @property
    @abstractmethod
    def program(self) -> list[str]:
        """The words that every command begins with."""

    def line(self, *words: str) -> str:
        """Return the command with these words as it is typed."""
        return shlex.join([*self.program, *words])

    @abstractmethod
    def restart(self, name: str) -> Words:
        """Restart a workload."""

    @abstractmethod
    def scale(self, name: str, replicas: int) -> Words:
        """Set a workload's number of instances, 0 or 1."""

    @abstractmethod
    def pods(self, name: str) -> Words:
        """Show a workload's instances."""

    @abstractmethod
    def logs(self, name: str) -> Words:
        """Read a workload's recent log."""

    @abstractmethod
    def environment(self, names: Sequence[str]) -> Words:
        """List the variables of workloads; () where the tool has no such command."""

    @abstractmethod
    def set_environment(
        self, name: str, values: Mapping[str, str | None], defaults: Mapping[str, str]
    ) -> tuple[list[str], str]:
        """Set variables, None for the default, and restart; return the variables as the command spells them, and it."""

    @abstractmethod
    def inside(self, name: str, *command: str) -> str:
        """Run a command in a workload's instance."""


class KubectlCommands(Commands):
    """kubectl, in the target's cluster and namespace."""

    @property
    def program(self) -> list[str]:
        """kubectl, its context and its namespace."""
        return self._settings.kubectl

    def restart(self, name: str) -> Words:
        """Restart the rollout."""
        return "rollout", "restart", f"deploy/{name}"

    def scale(self, name: str, replicas: int) -> Words:
        """Set the deployment's replicas."""
        return "scale", f"deploy/{name}", f"--replicas={replicas}"

    def pods(self, name: str) -> Words:
        """List the pods."""
        return "get", "pods", "-l", f"app={name}", "-o", "wide"

    def logs(self, name: str) -> Words:
        """Read the log of the workload's own container."""
        return "logs", f"deploy/{name}", "-c", self._container(name), "--since=15m"

    def environment(self, names: Sequence[str]) -> Words:
        """List the variables of the deployments."""
        return "set", "env", *(f"deploy/{name}" for name in names), "--list"

    def set_environment(
        self, name: str, values: Mapping[str, str | None], defaults: Mapping[str, str]
    ) -> tuple[list[str], str]:
        """Set them in the workload's own container; a default is no variable."""
        words = self.set_variables(name, values)
        return list(words[5:]), self.line(*words)

    def set_variables(self, name: str, values: Mapping[str, str | None]) -> Words:
        """Set them in the workload's own container only: a sidecar has its own."""
        words = [f"{variable}-" if value is None else f"{variable}={value}" for variable, value in values.items()]
        return "set", "env", f"deploy/{name}", "-c", self._container(name), *words

    def inside(self, name: str, *command: str) -> str:
        """Run it in the workload's own container."""
        return self.line("exec", f"deploy/{name}", "-c", self._container(name), "--", *command)

    def _container(self, name: str) -> str:
        return self._settings.containers.get(name, name)


class Runner(ABC):
    """One tool that runs workloads; see `runner_class`."""

    #: Its commands for proposals.
    commands: ClassVar[type[Commands]]
    #: The first words of every command that may be started.
    verbs: ClassVar[frozenset[tuple[str, ...]]]
    #: How the tool reports failures: the reason, the code, and phrases in lower case, the first match counts.
    failures: ClassVar[tuple[tuple[Reason, str, tuple[str, ...]], ...]]

    def __init__(self, settings: WorkloadSettings, read_cost: ReadCost) -> None:
        self._settings, self._read_cost = settings, read_cost
        self._known: dict[str, tuple[float, Any]] = {}
        #: When the last reading command failed, and its error if it did not end in time.
        self._hung: tuple[float, SourceError | None] = (-math.inf, None)

    @classmethod
    def declared(cls, opening: Opening) -> Runner:
        """Return the runner of the target's workloads."""
        return runner_of(opening.target.facts.workloads, opening.read_cost)

    def logs(self, name: str, minutes: float) -> Log:
        """Return the workload's log of these minutes; at most about LOG_BYTES are read."""
        text, since = self._read_log(self._check_name(name), minutes)
        return logs.read(text, self._mask, since)

    @abstractmethod
    def _read_log(self, name: str, minutes: float) -> tuple[str, datetime | None]:
        """Return the workload's log as it is, and when these minutes begin if it may hold older lines."""

    @abstractmethod
    def pods(self, name: str) -> list[dict[str, Any]]:
        """Return its running instances: `name`, `ready`, `restarts` (None where not counted), `started` (ISO or ""),
        `before` (the start before that, where it is kept), `ending` (it has been told to stop).
        """

    @abstractmethod
    def replicas(self, name: str) -> int:
        """Return how many instances there should be."""

    @abstractmethod
    def strategy(self, name: str) -> str:
        """Return how a restart replaces instances: "Recreate", "RollingUpdate", or "" if that is not known."""

    @abstractmethod
    def environment(self, name: str) -> dict[str, str]:
        """Return the variables that are set for the workload; secrets are masked."""

    def template(self, name: str) -> dict[str, str]:
        """Return its image and the limits of its resources, by name; {} if the tool knows none."""
        return {}

    def restart(self, name: str) -> str:
        """Restart it, and nothing else; return what the tool said."""
        return self._change(self._build.restart(self._check_name(name)))

    @abstractmethod
    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait until it is ready again; return what the tool said. Raises SourceError (timeout)."""

    def scale(self, name: str, replicas: int) -> str:
        """Set its number of instances, 0 or 1; return what the tool said."""
        if replicas not in (0, 1):
            raise error(Reason.DENIED, f"{replicas} replicas: only 0 and 1 are on the list", "not_allowed")
        return self._change(self._build.scale(self._check_name(name), replicas))

    @abstractmethod
    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Set variables (None removes one), which restarts the workload; return what the tool said."""

    def cluster(self) -> tuple[str, str]:
        """Return the name and the address of the cluster that the tool acts in; "" for what there is not."""
        return "", ""

    def cluster_id(self) -> str:
        """Return the id that the cluster gave itself when it was made; "" where there is none. Raises SourceError."""
        return ""

    def has_hidden_variables(self, name: str) -> bool:
        """Return whether the workload has variables that `environment` does not show."""
        return False

    @property
    def _build(self) -> Commands:
        return self.commands(self._settings)

    def _change(self, words: Words) -> str:
        return self._run_verb(*words, timeout_s=CHANGE_TIMEOUT_S).out.strip()

    @abstractmethod
    def _complaint(self, answer: CommandOutput) -> str | None:
        """Return what a command says of its failure, in lower case; None if it did not fail."""

    def _run_verb(self, *words: str, timeout_s: float = READ_TIMEOUT_S, most: int = OTHER_BYTES) -> CommandOutput:
        """Start one command, if it is one of the list, and wait for its end.

        Raises SourceError: denied (not on the list, or the tool's own refusal), unreachable, timeout, error.
        """
        verb = next((v for v in self.verbs if words[: len(v)] == v), None)
        if verb is None:
            raise error(Reason.DENIED, f"'{' '.join(words[:2])}' is not on the list of commands", "not_allowed")
        command = [*self._build.program, *words]
        if verb[0] not in ("get", "logs", "status", "tail"):
            self._known.clear()
            return self._run(command, verb, timeout_s, most)
        # Of a tool that hangs, such as at an expired login, each command would take its whole time.
        at, hung = self._hung
        if hung and time.monotonic() - at < SAME_S:
            raise hung
        try:
            return self._run(command, verb, timeout_s, most)
        except SourceError as e:
            self._hung = time.monotonic(), e if e.code == "hung" else None
            raise

    def _run(self, command: list[str], verb: tuple[str, ...], timeout_s: float, most: int) -> CommandOutput:
        with self._read_cost.query("workloads", " ".join(verb), shlex.join(command)) as asked:
            code, out, err = _run_command(command, timeout_s, most)
            answer = CommandOutput(code, out.decode(errors="replace"), err.decode(errors="replace"), self._mask)
            asked.rows = out.count(b"\n")
            if (complaint := self._complaint(answer)) is not None:
                raise self._tool_error(complaint, answer.problem)
        return answer

    def _read_once(self, name: str, read: Callable[[], T]) -> T:
        """Return what a workload is; for `SAME_S` seconds the same answer or failure, unless it was changed from here.

        Its variables, instances and replicas are asked for one after another.
        """
        at, known = self._known.get(name, (-math.inf, None))
        if time.monotonic() - at > SAME_S:
            try:
                known = read()
            except SourceError as e:
                known = e
            self._known[name] = time.monotonic(), known
        if isinstance(known, SourceError):
            raise known
        return cast(T, known)

    def _tool_error(self, complaint: str, detail: str) -> SourceError:
        """Return the error of what the tool says of its failure, in lower case."""
        found = ((reason, code) for reason, code, signs in self.failures if any(sign in complaint for sign in signs))
        reason, code = next(found, (Reason.ERROR, ""))
        return error(reason, f"log in to the cluster again: {detail}" if code == "login_expired" else detail, code)

    def _check_name(self, name: str) -> str:
        """Return the name if it is a valid workload of the target. Raises SourceError."""
        known = self._settings.programs.values()
        if name not in known or not _NAME.fullmatch(name) or name == "all":
            raise error(Reason.DENIED, f"{name!r} is not a workload of this target", "not_allowed")
        return name

    def _mask(self, text: str) -> str:
        return self._read_cost.masker.scrub(text)

    def _mask_variables(self, variables: Mapping[str, str]) -> dict[str, str]:
        return {k: _MASKED if v and _SECRET.search(k) else self._mask(v) for k, v in variables.items()}


class KubectlRunner(Runner):
    """Deployments of a Kubernetes namespace."""

    commands = KubectlCommands
    verbs = frozenset({
        ("get", "deploy"), ("get", "pods"), ("logs",), ("rollout", "restart"), ("rollout", "status"),
        ("set", "env"), ("scale",), ("config", "current-context"), ("config", "view"),
        ("get", "namespace"),
    })  # fmt: skip
    failures = (
        (
            Reason.DENIED,
            "login_expired",
            (
                "unauthorized",
                "must be logged in",
                "certificate has expired",
                "expired certificate",
                "token has expired",
                "getting credentials",
                "standard input is not a terminal",
            ),
        ),
        (Reason.DENIED, "forbidden", ("(forbidden)", "forbidden:")),
        (Reason.ERROR, "not_found", ("(notfound)",)),
        (Reason.TIMEOUT, "not_ready", ("timed out waiting", "exceeded its progress deadline")),
        (Reason.TIMEOUT, "hung", ("i/o timeout", "deadline exceeded", "client.timeout", "tls handshake timeout")),
        (Reason.UNREACHABLE, "no_connection", ("refused", "no such host", "unable to connect", "no route")),
        (Reason.UNREACHABLE, "no_connection", ("reset by peer",)),
    )

    def _read_log(self, name: str, minutes: float) -> tuple[str, datetime | None]:
        """Read the log of all its pods; each line begins with the time at which it was written."""
        container, selector = self._container(name), self._selector(self._read_deployment(name))
        # A limit of bytes alone would keep the oldest; so it is the newest lines, fewer if they are too long.
        for newest in LOG_LINES:
            answer = self._run_verb(
                "logs", f"--selector={selector}", "-c", container, "--timestamps", "--ignore-errors",
                f"--since={max(int(minutes * 60), 1)}s", f"--tail={newest}", f"--limit-bytes={LOG_BYTES}",
                most=2 * LOG_BYTES,
            )  # fmt: skip
            if len(answer.raw_out.encode()) < LOG_BYTES:
                break
        lines = answer.raw_out.split("\n")
        written = [line for line in lines if line[:4].isdigit()]
        if answer.raw_out and not written:  # errors of single pods are among the lines
            raise self._tool_error(answer.raw_out.lower(), answer.problem.removeprefix("error: "))
        return "\n".join(written), None

    def pods(self, name: str) -> list[dict[str, Any]]:
        """Find them by the deployment's own selector."""
        container, selector = self._container(name), self._selector(self._read_deployment(name))
        found = self._read_json("get", "pods", f"--selector={selector}")
        pods = []
        for pod in found.get("items", []):
            status = pod.get("status", {})
            if status.get("phase") in ("Succeeded", "Failed"):
                continue
            own: dict[str, Any] = next(
                (c for c in status.get("containerStatuses", []) if c.get("name") == container), {}
            )
            running = own.get("state", {}).get("running", {})
            pods.append({
                "name": self._mask(str(pod["metadata"]["name"])),
                # Of a node that is lost, only the pod's condition is kept up to date.
                "ready": bool(own.get("ready")) and all(
                    c.get("status") == "True" for c in status.get("conditions", []) if c.get("type") == "Ready"
                ),
                "restarts": own.get("restartCount"),
                "started": self._mask(str(running.get("startedAt") or status.get("startTime") or "")),
                "before": self._mask(str(own.get("lastState", {}).get("terminated", {}).get("startedAt") or "")),
                "ending": "deletionTimestamp" in pod["metadata"],
            })  # fmt: skip
        return pods

    def replicas(self, name: str) -> int:
        """Return the deployment's replicas."""
        return int(self._read_deployment(name)["spec"].get("replicas", 1))

    def strategy(self, name: str) -> str:
        """Return the deployment's strategy."""
        return self._mask(str(self._read_deployment(name)["spec"].get("strategy", {}).get("type", "")))

    def environment(self, name: str) -> dict[str, str]:
        """Read those of the workload's own container; a value that comes from elsewhere is masked: it is not known."""
        variables = self._read_variables(name)
        known = self._mask_variables({e["name"]: str(e.get("value", "")) for e in variables})
        return known | {e["name"]: _MASKED for e in variables if "valueFrom" in e}

    def template(self, name: str) -> dict[str, str]:
        """Read the workload's own container."""
        container = self._read_container(name)
        found = {"image": container.get("image", "")} | {
            f"{kind}.{resource}": value
            for kind, values in container.get("resources", {}).items()
            if isinstance(values, dict)
            for resource, value in values.items()
        }
        return {setting: self._mask(str(value)) for setting, value in found.items()}

    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait for the end of the rollout."""
        words = ("rollout", "status", f"deploy/{self._check_name(name)}", f"--timeout={max(int(timeout_s), 1)}s")
        return self._run_verb(*words, timeout_s=timeout_s + READ_TIMEOUT_S).out.strip()

    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Set them in the workload's own container."""
        changes = check_variables(variables)
        self._known.clear()  # what it is now decides, not what was read before
        elsewhere = {e["name"] for e in self._read_variables(name) if "valueFrom" in e} & set(changes)
        if elsewhere:  # it could not be put back
            raise error(
                Reason.DENIED, f"{min(elsewhere)} comes from a Secret or ConfigMap: change it there", "value_from"
            )
        return self._change(KubectlCommands(self._settings).set_variables(self._check_name(name), changes))

    def cluster(self) -> tuple[str, str]:
        """Return kubectl's context and its server, and stay with it: an action must not end in another cluster."""
        with suppress(SourceError):  # none: in a pod
            if not self._settings.context:
                current = self._run_verb("config", "current-context").out.strip()
                self._settings = self._settings.model_copy(update={"context": current})
            server = self._run_verb("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
            return self._settings.context, server.out.strip()
        return self._settings.context, ""

    def cluster_id(self) -> str:
        """Return the id of the namespace kube-system, which every cluster has."""
        return self._run_verb("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").out.strip()

    def has_hidden_variables(self, name: str) -> bool:
        """Return whether the container has variables from a whole ConfigMap or Secret (`envFrom`)."""
        return bool(self._read_container(name).get("envFrom"))

    def _complaint(self, answer: CommandOutput) -> str | None:
        return answer.raw_err.lower() if answer.code else None

    def _read_json(self, *words: str) -> dict[str, Any]:
        """Return what kubectl answers as it is: whoever passes a text of it on masks that."""
        try:
            return dict(json.loads(self._run_verb(*words, "-o", "json").raw_out))
        except ValueError:
            raise error(Reason.ERROR, f"kubectl {words[0]} did not answer with JSON", "") from None

    def _read_deployment(self, name: str) -> dict[str, Any]:
        return self._read_once(self._check_name(name), lambda: self._read_json("get", "deploy", name))

    def _container(self, name: str) -> str:
        return self._settings.containers.get(name, self._check_name(name))

    def _read_variables(self, name: str) -> list[dict[str, Any]]:
        return list(self._read_container(name).get("env", []))

    def _read_container(self, name: str) -> dict[str, Any]:
        container = self._container(name)
        found = self._read_deployment(name)["spec"]["template"]["spec"]["containers"]
        own = next((c for c in found if c["name"] == container), None)
        if own is None:
            raise error(Reason.ERROR, f"deployment {name} has no container {container}", "not_found")
        return dict(own)

    @staticmethod
    def _selector(deployment: dict[str, Any]) -> str:
        labels = deployment["spec"].get("selector", {}).get("matchLabels", {})
        selector = ",".join(f"{k}={v}" for k, v in labels.items())
        if not _SELECTOR.fullmatch(selector):
            raise error(Reason.ERROR, "the deployment selects its pods by no plain labels", "")
        return selector


def runner_class(settings: WorkloadSettings) -> type[Runner]:
    """Return the class of the tool that the settings choose. Raises UsageError if this installation leaves it out."""
    found: type[Runner] = KubectlRunner if settings.runner == "kubectl" else pack.hook("supervisorctl")
    return found


def runner_of(settings: WorkloadSettings, read_cost: ReadCost) -> Runner:
    """Return the runner that the settings choose; a missing tool is reported on first use."""
    return runner_class(settings)(settings, read_cost)


def check_variables(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return the variables if names and values are plain. Raises SourceError."""
    for name, value in variables.items():
        if not VARIABLE.fullmatch(name):
            raise error(Reason.DENIED, f"{name!r} is not a variable's name", "not_allowed")
        if value is not None and (not _VALUE.fullmatch(value) or _MASKED in value):
            raise error(Reason.DENIED, f"the value of {name} is not one line of plain text", "not_allowed")
    if not variables:
        raise error(Reason.DENIED, "no variable was named", "not_allowed")
    return dict(variables)


def _run_command(command: list[str], timeout_s: float, most: int) -> tuple[int, bytes, bytes]:
    """Run a command to its end and keep the first bytes of what it prints; it does not outlive the timeout."""
    # The runbook's own addresses are no business of the tool; its messages are read, so in one language.
    env = {k: v for k, v in os.environ.items() if not k.startswith("RUNBOOK_")} | {"LC_ALL": "C.UTF-8"}
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise error(Reason.UNREACHABLE, f"{Path(command[0]).name} is not installed", "not_installed") from None
    except OSError as e:
        raise error(Reason.UNREACHABLE, f"{Path(command[0]).name} cannot be started: {e.strerror}", "") from None
    out, err = bytearray(), bytearray()
    deadline = time.monotonic() + timeout_s
    try:
        with selectors.DefaultSelector() as pipes:
            for pipe, kept in ((child.stdout, out), (child.stderr, err)):
                assert pipe is not None  # noqa: S101 - for the type checker
                pipes.register(pipe, selectors.EVENT_READ, kept)
            while pipes.get_map():
                ready = pipes.select(max(deadline - time.monotonic(), 0))
                if not ready and time.monotonic() >= deadline:
                    raise subprocess.TimeoutExpired(command, timeout_s)
                for key, _ in ready:
                    if piece := os.read(key.fd, 1 << 16):
                        key.data.extend(piece[: max(most - len(key.data), 0)])
                    else:
                        pipes.unregister(key.fileobj)
        return child.wait(max(deadline - time.monotonic(), 0.1)), bytes(out), bytes(err)
    except subprocess.TimeoutExpired:
        name = Path(command[0]).name
        hint = "; if your login has expired, log in to the cluster again" if name == "kubectl" else ""
        raise error(Reason.TIMEOUT, f"{name} did not end within {timeout_s:g} s{hint}", "hung") from None
    finally:
        if child.returncode is None:  # whatever made us leave, nothing of it is left behind
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
