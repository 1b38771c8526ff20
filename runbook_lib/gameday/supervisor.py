"""Programs under supervisord as workloads: the sandbox's, and those of a target with `runner = "supervisorctl"`."""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from runbook_lib.model.finding import Reason
from runbook_lib.sources import workloads
from runbook_lib.sources.source import SourceError
from runbook_lib.sources.workloads import CommandOutput, Commands, Runner, Words
from runbook_lib.store.files import replace_file

#: How supervisorctl says that something is wrong.
_COMPLAINT = re.compile(
    r"^(?:unix:|https?:|error:|Server requires|[\w.:-]+: ERROR \().*$", re.MULTILINE | re.IGNORECASE
)


class SupervisorctlCommands(Commands):
    """supervisorctl, and what else runs on the programs' machine."""

    @property
    def program(self) -> list[str]:
        """supervisorctl, as the settings spell it."""
        return self._settings.supervisorctl

    def restart(self, name: str) -> Words:
        """Restart the program."""
        return "restart", name

    def scale(self, name: str, replicas: int) -> Words:
        """Stop or start the program."""
        return "start" if replicas else "stop", name

    def pods(self, name: str) -> Words:
        """Show the state of all programs."""
        return ("status",)

    def logs(self, name: str) -> Words:
        """Read the log that supervisord keeps."""
        return "tail", name

    def environment(self, names: Sequence[str]) -> Words:
        """Return (): supervisorctl does not list variables."""
        return ()

    def set_environment(
        self, name: str, values: Mapping[str, str | None], defaults: Mapping[str, str]
    ) -> tuple[list[str], str]:
        """Add them to the program's environment file, if it has one; a default is written like any other value."""
        words = [f"{variable}={defaults[variable] if value is None else value}" for variable, value in values.items()]
        if file := self._settings.env_file:
            added = f"printf '%s\\n' {shlex.join(words)} >> {shlex.quote(file)}"
            return words, f"{added} && {self.line(*self.restart(name))}"
        update = self.line("update", name)
        return words, f"{update}  # once environment= of [program:{name}] has {', '.join(words)}"

    def inside(self, name: str, *command: str) -> str:
        """Run it as it is: a program has no machine of its own."""
        return shlex.join(command)


class SupervisorctlRunner(Runner):
    """Programs under one supervisord: a program is its own only instance."""

    commands = SupervisorctlCommands
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
        return self._run_verb("tail", f"-{workloads.LOG_BYTES}", name, most=2 * workloads.LOG_BYTES).raw_out, since

    def pods(self, name: str) -> list[dict[str, Any]]:
        """Return the program as one instance, while it runs or tries to start."""
        state, rest = self._find_status(name)
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
        state, _ = self._find_status(name)
        return 0 if state == "STOPPED" else 1

    def strategy(self, name: str) -> str:
        """Return "Recreate": the old process is stopped before the new one starts."""
        self._check_name(name)
        return "Recreate"

    def environment(self, name: str) -> dict[str, str]:
        """Read the file that the programs read when they start."""
        self._check_name(name)
        lines = self._read_once("environment", self._read_env)  # one file for all programs
        return self._mask_variables(dict(line.split("=", 1) for line in lines if _is_assignment(line)))

    def restart(self, name: str) -> str:
        """Stop and start, and start what was stopped when the tool was cut off between the two."""
        try:
            return super().restart(name)
        except BaseException as e:
            if not isinstance(e, SourceError) or e.code == "hung":
                self._start_stopped(name)
            raise

    def _start_stopped(self, name: str) -> None:
        until = time.monotonic() + workloads.CHANGE_TIMEOUT_S
        with suppress(SourceError):
            while (state := self._read_status(name)[0]) == "STOPPING" and time.monotonic() < until:
                time.sleep(0.5)
            if state == "STOPPED":
                self.scale(name, 1)

    def wait_ready(self, name: str, timeout_s: float) -> str:
        """Wait until the program is RUNNING, that is, has stayed up for its `startsecs`."""
        deadline, pause = time.monotonic() + timeout_s, 0.5
        while (status := self._read_status(name))[0] != "RUNNING":
            if time.monotonic() + pause > deadline:
                raise workloads.error(Reason.TIMEOUT, f"{name} is {status[0]} after {timeout_s:g} s", "not_ready")
            time.sleep(pause)
            pause = min(1.5 * pause, 5.0)  # each look is a line of the read cost
        return f"{name} {' '.join(status)}"

    def set_environment(self, name: str, variables: Mapping[str, str | None]) -> str:
        """Rewrite the file and restart the one program."""
        self._check_name(name)
        changes = workloads.check_variables(variables)
        kept = [line for line in self._read_env() if line.partition("=")[0] not in changes]
        lines = [*kept, *(f"{k}={v}" for k, v in changes.items() if v is not None)]
        words = " ".join(f"{k}-" if v is None else f"{k}={v}" for k, v in changes.items())
        with self._read_cost.query("workloads", "set environment", f"{self._settings.env_file}: {words}"):
            try:
                text = "".join(f"{line}\n" for line in lines)
                replace_file(Path(self._settings.env_file), text.encode(), new_mode=0o600)
            except OSError as e:
                raise workloads.error(
                    Reason.DENIED, f"cannot write {self._settings.env_file}: {e.strerror}", "file"
                ) from None
        return self.restart(name)

    def _complaint(self, answer: CommandOutput) -> str | None:
        # Its exit code is no guide (`status` gives 3 for a program that is stopped), and a log is no complaint.
        said = " ".join(_COMPLAINT.findall(f"{answer.raw_err}\n{answer.raw_out[:500]}")).lower()
        known = any(word in said for _, _, words in self.failures for word in words)
        return said if known or (answer.code and not answer.raw_out.strip()) else None

    def _find_status(self, name: str) -> tuple[str, str]:
        """Return a program's state and the rest of its line; one command reads those of all programs."""
        self._check_name(name)
        every = self._read_once("status", lambda: self._run_verb("status").out.splitlines())
        return _parse_status(name, next((line for line in every if line.split(maxsplit=1)[:1] == [name]), ""))

    def _read_status(self, name: str) -> tuple[str, str]:
        return _parse_status(name, self._run_verb("status", self._check_name(name)).out)

    def _read_tail(self, path: Path) -> str:
        with self._read_cost.query("workloads", "logs", f"the last {workloads.LOG_BYTES} bytes of {path}") as asked:
            try:
                with path.open("rb") as file:
                    start = max(file.seek(0, os.SEEK_END) - workloads.LOG_BYTES, 0)
                    file.seek(start)
                    found = file.read(workloads.LOG_BYTES)
            except OSError as e:
                raise workloads.error(Reason.UNREACHABLE, f"cannot read {path}: {e.strerror}", "file") from None
            asked.rows = found.count(b"\n")
        if start:
            found = found.partition(b"\n")[2]
        return found.decode(errors="replace")

    def _read_env(self) -> list[str]:
        if not self._settings.env_file:
            raise workloads.error(Reason.NOT_CONFIGURED, "workloads.env_file is not set", "")
        with self._read_cost.query("workloads", "environment", f"read {self._settings.env_file}"):
            try:
                return Path(self._settings.env_file).read_text(encoding="utf-8").splitlines()
            except OSError as e:
                raise workloads.error(
                    Reason.UNREACHABLE, f"cannot read {self._settings.env_file}: {e.strerror}", "file"
                ) from None


def _parse_status(name: str, line: str) -> tuple[str, str]:
    words = line.split(maxsplit=2)
    if len(words) < 2:
        raise workloads.error(Reason.ERROR, f"supervisorctl does not know {name}", "not_found")
    return words[1], words[2].strip() if len(words) > 2 else ""


def _is_assignment(line: str) -> bool:
    return bool(workloads.VARIABLE.fullmatch(line.partition("=")[0])) and "=" in line
