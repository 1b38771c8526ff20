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
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from runbook_lib.model.finding import Reason
from runbook_lib.privacy import redaction
from runbook_lib.sources import logs
from runbook_lib.sources.logs import Log
from runbook_lib.sources.settings import WorkloadSettings
from runbook_lib.sources.source import Opening, ReadCost, SourceError

T = TypeVar("T")

_error = partial(SourceError, "workloads")
READ_TIMEOUT_S, CHANGE_TIMEOUT_S = 15.0, 45.0
#: Seconds for which a workload that was read is not read again.
SAME_S = 5.0
LOG_BYTES, OTHER_BYTES = 20_000_000, 4_000_000
#: The newest lines of a log; less where they are more than LOG_BYTES.
LOG_LINES = (50_000, 10_000, 2_000)

#: The names of Kubernetes; the other runners' are among them or nearly so. None begins with a dash.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,61}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_VALUE = re.compile(r"[^\x00-\x1f\x7f]{0,1000}")
_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]*=[A-Za-z0-9._-]*,?)+")
_SECRET = re.compile(
    r"passw|passphrase|secret|token|credential|(?:api|access|auth|encryption|private|signing)_?key"
    r"|(?:^|_)(?:pass|pwd|jwt|seed|key)$",
    re.IGNORECASE,
)
_MASKED = "***"
#: How supervisorctl says that something is wrong.
_COMPLAINT = re.compile(
    r"^(?:unix:|https?:|error:|Server requires|[\w.:-]+: ERROR \().*$", re.MULTILINE | re.IGNORECASE
)


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


class Runner(ABC):
    """One tool that runs workloads. Another one is a subclass with its verbs, in `RUNNERS`."""

    #: The first words of every command that may be started.
    verbs: ClassVar[frozenset[tuple[str, ...]]]
    #: How the tool reports failures: the reason, the code, and phrases in lower case, the first match counts.
    failures: ClassVar[tuple[tuple[Reason, str, tuple[str, ...]], ...]]

    def __init__(self, settings: WorkloadSettings, read_cost: ReadCost) -> None:
        self._settings, self._read_cost = settings, read_cost
        self._known: dict[str, tuple[float, Any]] = {}

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
        `ending` (it has been told to stop).
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

    @abstractmethod
    def restart(self, name: str) -> str:
        """Restart it, and nothing else; return what the tool said."""

    @abstractmethod
    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait until it is ready again; return what the tool said. Raises SourceError (timeout)."""

    @abstractmethod
    def scale(self, name: str, replicas: int) -> str:
        """Set its number of instances, 0 or 1; return what the tool said."""

    @abstractmethod
    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Set variables (None removes one), which restarts the workload; return what the tool said."""

    def cluster(self) -> tuple[str, str]:
        """Return the name and the address of the cluster that the tool acts in; "" for what there is not."""
        return "", ""

    def has_hidden_variables(self, name: str) -> bool:
        """Return whether the workload has variables that `environment` does not show."""
        return False

    @abstractmethod
    def _command(self, words: tuple[str, ...]) -> list[str]:
        """Return the argument vector of a command that ends with these words."""

    @abstractmethod
    def _complaint(self, answer: CommandOutput) -> str | None:
        """Return what a command says of its failure, in lower case; None if it did not fail."""

    def _run_verb(self, *words: str, timeout_s: float = READ_TIMEOUT_S, most: int = OTHER_BYTES) -> CommandOutput:
        """Start one command, if it is one of the list, and wait for its end.

        Raises SourceError: denied (not on the list, or the tool's own refusal), unreachable, timeout, error.
        """
        verb = next((v for v in self.verbs if words[: len(v)] == v), None)
        if verb is None:
            raise _error(Reason.DENIED, f"'{' '.join(words[:2])}' is not on the list of commands", "not_allowed")
        command = self._command(words)
        if verb[0] not in ("get", "logs", "status", "tail"):
            self._known.clear()
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
        return _error(reason, detail, code)

    def _check_name(self, name: str) -> str:
        """Return the name if it is a valid workload of the target. Raises SourceError."""
        known = self._settings.programs.values()
        if name not in known or not _NAME.fullmatch(name) or name == "all":
            raise _error(Reason.DENIED, f"{name!r} is not a workload of this target", "not_allowed")
        return name

    def _mask(self, text: str) -> str:
        return self._read_cost.masker.scrub(text)

    def _mask_variables(self, variables: Mapping[str, str]) -> dict[str, str]:
        return {k: _MASKED if v and _SECRET.search(k) else self._mask(v) for k, v in variables.items()}


class KubectlRunner(Runner):
    """Deployments of a Kubernetes namespace."""

    verbs = frozenset({
        ("get", "deploy"), ("get", "pods"), ("logs",), ("rollout", "restart"), ("rollout", "status"),
        ("set", "env"), ("scale",), ("config", "current-context"), ("config", "view"),
    })  # fmt: skip
    failures = (
        (Reason.DENIED, "forbidden", ("(forbidden)", "forbidden:", "unauthorized", "must be logged in")),
        (Reason.ERROR, "not_found", ("(notfound)",)),
        (Reason.TIMEOUT, "not_ready", ("timed out waiting", "exceeded its progress deadline")),
        (Reason.TIMEOUT, "hung", ("i/o timeout", "deadline exceeded", "client.timeout", "tls handshake timeout")),
        (Reason.UNREACHABLE, "no_connection", ("refused", "no such host", "unable to connect", "no route")),
        (Reason.UNREACHABLE, "no_connection", ("reset by peer",)),
    )
    #: The context that was found by `cluster`.
    _current = ""

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

    def restart(self, name: str) -> str:
        """Restart the rollout."""
        words = ("rollout", "restart", f"deploy/{self._check_name(name)}")
        return self._run_verb(*words, timeout_s=CHANGE_TIMEOUT_S).out.strip()

    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait for the end of the rollout."""
        words = ("rollout", "status", f"deploy/{self._check_name(name)}", f"--timeout={max(int(timeout_s), 1)}s")
        return self._run_verb(*words, timeout_s=timeout_s + READ_TIMEOUT_S).out.strip()

    def scale(self, name: str, replicas: int) -> str:
        """Set the deployment's replicas."""
        words = ("scale", f"deploy/{self._check_name(name)}", f"--replicas={_check_replicas(replicas)}")
        return self._run_verb(*words, timeout_s=CHANGE_TIMEOUT_S).out.strip()

    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Set them in the workload's own container only: a sidecar has its own."""
        changes = _check_variables(variables)
        self._known.clear()  # what it is now decides, not what was read before
        elsewhere = {e["name"] for e in self._read_variables(name) if "valueFrom" in e} & set(changes)
        if elsewhere:  # it could not be put back
            raise _error(
                Reason.DENIED, f"{min(elsewhere)} comes from a Secret or ConfigMap: change it there", "value_from"
            )
        values = [f"{k}-" if v is None else f"{k}={v}" for k, v in changes.items()]
        words = ("set", "env", f"deploy/{name}", "-c", self._container(name), *values)
        return self._run_verb(*words, timeout_s=CHANGE_TIMEOUT_S).out.strip()

    def cluster(self) -> tuple[str, str]:
        """Return kubectl's context and its server, and stay with it: an action must not end in another cluster."""
        with suppress(SourceError):  # none: in a pod
            if not (self._settings.context or self._current):
                self._current = self._run_verb("config", "current-context").out.strip()
            server = self._run_verb("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
            return self._settings.context or self._current, server.out.strip()
        return self._settings.context or self._current, ""

    def has_hidden_variables(self, name: str) -> bool:
        """Return whether the container has variables from a whole ConfigMap or Secret (`envFrom`)."""
        return bool(self._read_container(name).get("envFrom"))

    def _command(self, words: tuple[str, ...]) -> list[str]:
        named = self._settings.context or self._current
        context = ["--context", named] if named else []
        return ["kubectl", *context, "-n", self._settings.namespace, *words]

    def _complaint(self, answer: CommandOutput) -> str | None:
        return answer.raw_err.lower() if answer.code else None

    def _read_json(self, *words: str) -> dict[str, Any]:
        """Return what kubectl answers as it is: whoever passes a text of it on masks that."""
        try:
            return dict(json.loads(self._run_verb(*words, "-o", "json").raw_out))
        except ValueError:
            raise _error(Reason.ERROR, f"kubectl {words[0]} did not answer with JSON", "") from None

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
            raise _error(Reason.ERROR, f"deployment {name} has no container {container}", "not_found")
        return dict(own)

    @staticmethod
    def _selector(deployment: dict[str, Any]) -> str:
        labels = deployment["spec"].get("selector", {}).get("matchLabels", {})
        selector = ",".join(f"{k}={v}" for k, v in labels.items())
        if not _SELECTOR.fullmatch(selector):
            raise _error(Reason.ERROR, "the deployment selects its pods by no plain labels", "")
        return selector


class SupervisorctlRunner(Runner):
    """Programs under one supervisord: a program is its own only instance."""

    verbs = frozenset({("status",), ("tail",), ("restart",), ("start",), ("stop",)})
    failures = (
        (Reason.UNREACHABLE, "no_connection", ("no such file", "refused connection", "connection refused")),
        (Reason.DENIED, "forbidden", ("unauthorized", "permission denied", "requires authentication")),
        (Reason.ERROR, "not_found", ("no such process", "no such group")),
        (Reason.ERROR, "not_started", ("spawn error", "abnormal termination")),
    )

    def _read_log(self, name: str, minutes: float) -> tuple[str, datetime | None]:
        """Read the file that the settings name, else what supervisord keeps."""
        since, file = datetime.now(UTC) - timedelta(minutes=minutes), self._settings.log_files.get(name)
        if file:
            return self._read_tail(Path(file)), since
        return self._run_verb("tail", f"-{LOG_BYTES}", name, most=2 * LOG_BYTES).raw_out, since

    def pods(self, name: str) -> list[dict[str, Any]]:
        """Return the program as one instance, while it runs or tries to start."""
        state, rest = self._read_once(self._check_name(name), lambda: self._read_status(name))
        if state in ("STOPPED", "EXITED", "FATAL"):
            return []
        up = re.search(r"uptime (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)", rest)
        days, hours, minutes, seconds = (int(n or 0) for n in up.groups()) if up else (0, 0, 0, 0)
        age = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
        started = (datetime.now(UTC) - age).isoformat(timespec="seconds") if up else ""
        # In BACKOFF it has ended at its start at least once; how often is not said.
        restarts = 1 if state == "BACKOFF" else None
        found = {"name": name, "ready": state == "RUNNING", "restarts": restarts, "started": started}
        return [found | {"ending": state == "STOPPING"}]

    def replicas(self, name: str) -> int:
        """Return 1, or 0 if the program was stopped."""
        state, _ = self._read_once(self._check_name(name), lambda: self._read_status(name))
        return 0 if state == "STOPPED" else 1

    def strategy(self, name: str) -> str:
        """Return "Recreate": the old process is stopped before the new one starts."""
        self._check_name(name)
        return "Recreate"

    def environment(self, name: str) -> dict[str, str]:
        """Read the file that the programs read when they start."""
        self._check_name(name)
        return self._mask_variables(dict(line.split("=", 1) for line in self._read_env() if _is_assignment(line)))

    def restart(self, name: str) -> str:
        """Stop and start, and start what was stopped when the tool was cut off between the two."""
        try:
            return self._run_verb("restart", self._check_name(name), timeout_s=CHANGE_TIMEOUT_S).out.strip()
        except BaseException as e:
            if not isinstance(e, SourceError) or e.code == "hung":
                self._start_stopped(name)
            raise

    def _start_stopped(self, name: str) -> None:
        until = time.monotonic() + CHANGE_TIMEOUT_S
        with suppress(SourceError):
            while (state := self._read_status(name)[0]) == "STOPPING" and time.monotonic() < until:
                time.sleep(0.5)
            if state == "STOPPED":
                self._run_verb("start", name, timeout_s=CHANGE_TIMEOUT_S)

    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait until the program is RUNNING, that is, has stayed up for its `startsecs`."""
        deadline, pause = time.monotonic() + timeout_s, 0.5
        while (status := self._read_status(name))[0] != "RUNNING":
            if time.monotonic() + pause > deadline:
                raise _error(Reason.TIMEOUT, f"{name} is {status[0]} after {timeout_s:g} s", "not_ready")
            time.sleep(pause)
            pause = min(1.5 * pause, 5.0)  # each look is a line of the read cost
        return f"{name} {' '.join(status)}"

    def scale(self, name: str, replicas: int) -> str:
        """Stop or start it."""
        verb = "start" if _check_replicas(replicas) else "stop"
        return self._run_verb(verb, self._check_name(name), timeout_s=CHANGE_TIMEOUT_S).out.strip()

    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Rewrite the file and restart the one program."""
        self._check_name(name)
        changes = _check_variables(variables)
        kept = [line for line in self._read_env() if line.partition("=")[0] not in changes]
        lines = [*kept, *(f"{k}={v}" for k, v in changes.items() if v is not None)]
        words = " ".join(f"{k}-" if v is None else f"{k}={v}" for k, v in changes.items())
        with self._read_cost.query("workloads", "set environment", f"{self._settings.env_file}: {words}"):
            try:
                _write_env(Path(self._settings.env_file), "".join(f"{line}\n" for line in lines))
            except OSError as e:
                raise _error(Reason.DENIED, f"cannot write {self._settings.env_file}: {e.strerror}", "file") from None
        return self.restart(name)

    def _command(self, words: tuple[str, ...]) -> list[str]:
        return [*self._settings.supervisorctl, *words]

    def _complaint(self, answer: CommandOutput) -> str | None:
        # Its exit code is no guide (`status` gives 3 for a program that is stopped), and a log is no complaint.
        said = " ".join(_COMPLAINT.findall(f"{answer.raw_err}\n{answer.raw_out[:500]}")).lower()
        known = any(word in said for _, _, words in self.failures for word in words)
        return said if known or (answer.code and not answer.raw_out.strip()) else None

    def _read_status(self, name: str) -> tuple[str, str]:
        words = self._run_verb("status", self._check_name(name)).out.split(maxsplit=2)
        if len(words) < 2:
            raise _error(Reason.ERROR, f"supervisorctl does not know {name}", "not_found")
        return words[1], words[2].strip() if len(words) > 2 else ""

    def _read_tail(self, path: Path) -> str:
        with self._read_cost.query("workloads", "logs", f"the last {LOG_BYTES} bytes of {path}") as asked:
            try:
                with path.open("rb") as file:
                    start = max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0)
                    file.seek(start)
                    found = file.read(LOG_BYTES)
            except OSError as e:
                raise _error(Reason.UNREACHABLE, f"cannot read {path}: {e.strerror}", "file") from None
            asked.rows = found.count(b"\n")
        if start:
            found = found.partition(b"\n")[2]
        return found.decode(errors="replace")

    def _read_env(self) -> list[str]:
        if not self._settings.env_file:
            raise _error(Reason.NOT_CONFIGURED, "workloads.env_file is not set", "")
        with self._read_cost.query("workloads", "environment", f"read {self._settings.env_file}"):
            try:
                return Path(self._settings.env_file).read_text(encoding="utf-8").splitlines()
            except OSError as e:
                raise _error(
                    Reason.UNREACHABLE, f"cannot read {self._settings.env_file}: {e.strerror}", "file"
                ) from None


RUNNERS: dict[str, type[Runner]] = {"kubectl": KubectlRunner, "supervisorctl": SupervisorctlRunner}


def runner_of(settings: WorkloadSettings, read_cost: ReadCost) -> Runner:
    """Return the runner that the settings choose; a missing tool is reported on first use."""
    return RUNNERS[settings.runner](settings, read_cost)


def _check_replicas(replicas: int) -> int:
    if replicas not in (0, 1):
        raise _error(Reason.DENIED, f"{replicas} replicas: only 0 and 1 are on the list", "not_allowed")
    return replicas


def _check_variables(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    for name, value in variables.items():
        if not _VARIABLE.fullmatch(name):
            raise _error(Reason.DENIED, f"{name!r} is not a variable's name", "not_allowed")
        if value is not None and (not _VALUE.fullmatch(value) or _MASKED in value):
            raise _error(Reason.DENIED, f"the value of {name} is not one line of plain text", "not_allowed")
    if not variables:
        raise _error(Reason.DENIED, "no variable was named", "not_allowed")
    return dict(variables)


def _is_assignment(line: str) -> bool:
    return bool(_VARIABLE.fullmatch(line.partition("=")[0])) and "=" in line


def _write_env(path: Path, text: str) -> None:
    """Replace a file in one step; it keeps its owner, group and mode, and a new one is readable by its owner only."""
    path = path.resolve()  # of a link, what it leads to
    before = path.stat() if path.exists() else None
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if before:
                _keep_access(descriptor, before)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise


def _keep_access(descriptor: int, before: os.stat_result) -> None:
    """Give a file the owner, group and mode of another; who reads it now must read it at the next start."""
    try:
        os.fchown(descriptor, before.st_uid, before.st_gid)
    except OSError as e:
        raise OSError(e.errno, f"its owner and group cannot be kept ({e.strerror})") from None
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))


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
        raise _error(Reason.UNREACHABLE, f"{Path(command[0]).name} is not installed", "not_installed") from None
    except OSError as e:
        raise _error(Reason.UNREACHABLE, f"{Path(command[0]).name} cannot be started: {e.strerror}", "") from None
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
        raise _error(Reason.TIMEOUT, f"{Path(command[0]).name} did not end within {timeout_s:g} s", "hung") from None
    finally:
        if child.returncode is None:  # whatever made us leave, nothing of it is left behind
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        for pipe in (child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
