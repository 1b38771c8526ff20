"""The whole sandbox under one supervisor: up, status, down."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import psutil
import psycopg
import requests
from nats.js import JetStreamContext
from supervisor.xmlrpc import Faults, SupervisorTransport

from runbook_lib.model.usage import SANDBOX_TARGET, sandbox_folder
from runbook_lib.sources import logs

from . import broker, database, history, servers
from .intruder import INTRUDERS
from .pod import FAILED_START
from .settings import AROUND_FILE, PODS_FILE, read_env, split_env
from .state import DATABASE, FILE_NAME, SERVICES, Addresses, SandboxError, SandboxState, command, load, write_private

T = TypeVar("T")

PROGRAMS = ("postgres", "nats", "receiver", *SERVICES)
UP_TIMEOUT = 60.0
DOWN_TIMEOUT = 5.0

# Every process of a sandbox inherits this variable, which holds the folder: so `down` finds them all, even
# those whose supervisor is dead.
_MARK = "RUNBOOK_SANDBOX_OWNER"
_OWN_FILES = (
    "postgres", "nats", "log", "run", PODS_FILE, AROUND_FILE, "nats.conf", "supervisord.conf", "supervisord.pid",
    "postgres.password", FILE_NAME, SANDBOX_TARGET, "runbook-ledger",
)  # fmt: skip


class Sandbox:
    """One sandbox, in one folder, under one supervisor."""

    def __init__(self, directory: Path | str | None = None) -> None:
        self.directory = Path(directory or sandbox_folder()).resolve()

    @property
    def state(self) -> SandboxState:
        """Return its state on disk. Raises SandboxError if there is none."""
        return load(self.directory)

    # Life ---------------------------------------------------------------------------------------------------

    def up(
        self, rate: float = 5.0, hours: float = 6.0, settings: Mapping[str, str] | None = None, seed: int = 1
    ) -> SandboxState:
        """Start everything, with `hours` of past traffic, and return when events flow end to end.

        `settings` are environment variables of the pods, such as NOTIFICATION_DELIVERY_BATCH_SIZE.
        """
        with self._reserve_folder():
            state = SandboxState(self.directory, Addresses.choose(), _socket_path())
            state.save()
            pods = _pod_environment(state.addresses)
            try:
                self._start_programs(state, hours, {**pods, **(settings or {}), "SANDBOX_RATE": f"{rate:g}"}, seed)
            except BaseException as error:
                reason = self._last_words()
                self.down()
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    raise
                raise SandboxError(f"the sandbox did not come up: {error}{reason}") from error
            state.ready = True
            state.save()
            return state

    @contextlib.contextmanager
    def _reserve_folder(self) -> Iterator[None]:
        """Reserve a folder that contains no sandbox, against other starts at the same time."""
        if set(str(self.directory)) & set("%;\n"):  # they mean something in the supervisor's file
            raise SandboxError(f"{self.directory} has a % or a ; in its name: name another folder")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            held = os.open(self.directory, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            raise SandboxError(f"the sandbox in {self.directory} is being started by another command") from None
        except OSError as error:
            raise SandboxError(f"cannot use {self.directory}: {error.strerror}") from None
        try:
            if self._supervisor_answers():
                half = f"did not finish its start; `{command('down', self.directory)}` first"
                word = "is already up" if self.is_up() else half
                raise SandboxError(f"the sandbox in {self.directory} {word}")
            self._remove_remains()  # what a crash left
            if any(self.directory.iterdir()):
                raise SandboxError(f"{self.directory} is not empty and holds no sandbox: name another folder")
            yield
        finally:
            os.close(held)

    def down(self) -> bool:
        """Stop and delete everything, whatever state it is in; False when there was nothing."""
        there = self._remove_remains()
        if there:
            with contextlib.suppress(OSError):  # somebody put a file of their own there
                self.directory.rmdir()
        return there

    def _remove_remains(self) -> bool:
        self._stop_processes()
        with contextlib.suppress(SandboxError):
            shutil.rmtree(self.state.socket.parent, ignore_errors=True)
        if not (self.directory / FILE_NAME).exists():
            return False
        interrupted = self.directory.glob(".*.new")  # at which `write_private` was interrupted
        for path in (*(self.directory / name for name in _OWN_FILES), *interrupted):
            self._remove_file(path)
        return True

    def _remove_file(self, path: Path) -> None:
        """Remove our files; a process that was interrupted at its start and still writes there is ended first."""
        until = time.monotonic() + DOWN_TIMEOUT
        while True:
            try:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
                return
            except OSError:
                if time.monotonic() > until:
                    raise
                self._stop_processes()
                time.sleep(0.1)

    def is_up(self) -> bool:
        """Return whether the sandbox exists, is ready, and its supervisor is alive."""
        return self._supervisor_answers() and self.state.ready

    def programs(self) -> dict[str, str]:
        """Return the supervisor's state of each program, RUNNING when well. Raises SandboxError if it is not up."""
        self.up_state()
        return {name: self.program_state(name) for name in PROGRAMS}

    def pods(self) -> dict[str, str]:
        """Return the name of each service's pod."""
        return {app: self.pod(app)["pod"] for app in SERVICES}

    def configure(self, settings: Mapping[str, str | None]) -> None:
        """Set environment variables of the pods, or take them away (None); they count from each pod's next start."""
        self.up_state()
        changed = {**self.settings, **settings}
        self._write_env({name: value for name, value in changed.items() if value is not None})

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of the pods and of what is around them, as they are now."""
        return read_env(self.directory / PODS_FILE) | read_env(self.directory / AROUND_FILE)

    def log(self, program: str) -> str:
        """Return a program's log; "" if it has none yet."""
        path = self.directory / "log" / f"{program}.log"
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    # One by one ---------------------------------------------------------------------------------------------

    def program_state(self, name: str) -> str:
        """Return the supervisor's state of a program: RUNNING, STOPPED, BACKOFF, ..."""
        return str(self._call_supervisor("getProcessInfo", name)["statename"])

    def start(self, *names: str) -> None:
        """Start programs unless they run, or try to."""
        for name in names:
            self._call_supervisor("startProcess", name, False, unless=Faults.ALREADY_STARTED)

    def stop(self, *names: str) -> None:
        """Stop programs and wait for their end."""
        for name in names:
            self._call_supervisor("stopProcess", name, True, unless=Faults.NOT_RUNNING)

    def restart(self, *names: str) -> None:
        """Stop and start programs, one after the other: a pod comes back under a new name."""
        for name in names:
            self.stop(name)
            self.start(name)

    def signal_program(self, name: str, how: str, part: str = "") -> None:
        """Send a signal, such as STOP, to a program; to a pod and all its parts, or to one part, which has to run.

        "FILES" is no signal: what a part has open now is all that it may open.
        """
        if name not in SERVICES:
            self._call_supervisor("signalProcess", name, how, unless=Faults.NOT_RUNNING)
            return
        pod = self.pod(name)
        for pid in [pod["parts"][part]] if part else [pod["pid"], *pod["parts"].values()]:
            try:
                process = psutil.Process(pid)
                if process.environ().get(_MARK) != str(self.directory):
                    raise psutil.NoSuchProcess(pid)  # its pid is somebody else's now
                if how == "FILES":
                    _, hard = process.rlimit(psutil.RLIMIT_NOFILE)
                    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), hard))
                else:
                    process.send_signal(signal.Signals[f"SIG{how}"])
            except psutil.Error:
                if part:
                    raise SandboxError(f"the {part} of {name} does not run") from None

    def pod(self, app: str) -> Any:
        """Return a pod's name and the process ids of its parts."""
        try:
            return json.loads((self.directory / "run" / f"{app}.json").read_text())
        except FileNotFoundError:
            raise SandboxError(f"pod {app} has not started yet") from None

    def configure_broker(self, **changes: Any) -> None:
        """Let the broker run with these fields beside its own ones, and without earlier ones (see `write_nats_config`).

        Raises ValueError if it does not take them; it keeps what it has.
        """
        file = self.directory / "nats.conf"
        before, runs = file.read_text(), self.program_state("nats") == "RUNNING"
        loaded = self.ask_broker("varz")["config_load_time"] if runs else None
        servers.write_nats_config(self.directory, self.state.addresses, **changes)
        self.signal_program("nats", "HUP")
        until = time.monotonic() + 2
        while runs and self.ask_broker("varz")["config_load_time"] == loaded:
            if time.monotonic() > until:
                write_private(file, before)
                raise ValueError(f"nats-server does not take {', '.join(changes)}")
            time.sleep(0.05)

    def ask_broker(self, path: str) -> Any:
        """Return what the broker's monitoring endpoint answers. Raises OSError."""
        with requests.Session() as session:
            session.trust_env = False  # no proxy of this machine's
            return session.get(f"{self.state.addresses.nats_monitor_url}/{path}", timeout=2).json()

    def visit(self, scene: Callable[[JetStreamContext], Awaitable[T]]) -> T:
        """Run a function at the broker as the applications, on a connection of its own."""
        return broker.visit(self.state.addresses.app_nats_url, scene)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[database.Connection]:
        """Use the applications' own database role; all or nothing, so that no worker sees a half of it."""
        with database.connect(self.state.addresses.app_url) as connection, connection.transaction():
            yield connection

    def wait_for_flow(self, timeout: float) -> None:
        """Return when an event has passed every hop since now; SandboxError when none does in time."""
        self.wait_for("events to flow end to end", self._flow_condition(), timeout)

    def _flow_condition(self) -> Callable[[], bool]:
        state = self.state
        if not float(self.settings["SANDBOX_RATE"]):
            return lambda: "terminated advisory subscriber started" in self.log("notification")
        since = datetime.now(UTC)
        query = (
            "SELECT EXISTS (SELECT FROM entitlement.outbox_events WHERE published_at > %(since)s)"
            " AND EXISTS (SELECT FROM notification.processed_events WHERE processed_at > %(since)s)"
            " AND EXISTS (SELECT FROM notification.notifications WHERE sent_at > %(since)s)"
        )

        def flows() -> bool:
            bounded = "-c statement_timeout=2000"  # a table may be locked
            with psycopg.connect(state.addresses.admin_url, connect_timeout=2, options=bounded) as connection:
                row = connection.execute(query, {"since": since}).fetchone()
                return bool(row and row[0])

        return flows

    @staticmethod
    def wait_for(what: str, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Poll until the condition holds; SandboxError after the timeout."""
        deadline = time.monotonic() + timeout
        while True:
            with contextlib.suppress(psycopg.OperationalError, OSError):
                if condition():
                    return
            if time.monotonic() > deadline:
                raise SandboxError(f"waited {timeout:g} s for {what}")
            time.sleep(0.1)

    # Inside -------------------------------------------------------------------------------------------------

    def _start_programs(self, state: SandboxState, hours: float, settings: dict[str, str], seed: int) -> None:
        deadline = time.monotonic() + UP_TIMEOUT
        for name in ("log", "run"):
            (self.directory / name).mkdir()
        servers.initialise(self.directory, state.addresses)
        self._write_env(settings)
        write_private(state.supervisor_config, _supervisor_config(state))
        self._start_supervisord(state)
        servers.wait_for_postgres(state.addresses, lambda: self.program_state("postgres") != "FATAL")
        servers.wait_for_nats(state.addresses, lambda: self.program_state("nats") != "FATAL")
        servers.create_database(state.addresses)
        self.start("receiver", "notification")
        with psycopg.connect(state.addresses.app_url, autocommit=True) as connection:
            history.backfill(connection, datetime.now(UTC), hours, float(settings["SANDBOX_RATE"]) or 5.0, seed)
        # The load starts when the past is complete, so that there is no event in two minds about its order.
        self.start("entitlement")
        flows = self._flow_condition()
        self.wait_for(
            "events to flow end to end",
            lambda: self._pods_stay_up() and flows(),
            deadline - time.monotonic(),
        )

    def _pods_stay_up(self) -> bool:
        for app in SERVICES:
            if self.program_state(app) in ("BACKOFF", "FATAL") or FAILED_START in self.log(app):
                # Its words at once: the supervisor is about to start it again, or has.
                raise SandboxError(f"pod {app} ends at its start{self._last_log_line(app)}")
        return True

    def _start_supervisord(self, state: SandboxState) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(state.supervisor_config)],
            env={**os.environ, _MARK: str(self.directory)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise SandboxError(f"supervisord: {lines[0]}")
        self.wait_for("supervisord", self._supervisor_answers)

    def _stop_processes(self) -> None:
        """Stop whatever is left of it: the supervisor first, which ends its programs, or would start them again.

        SIGINT is PostgreSQL's fast shutdown, which frees its memory, and an ordinary end for everybody else.
        """
        for module, number, patience in (
            ("supervisor.supervisord", signal.SIGTERM, DOWN_TIMEOUT),
            ("supervisor.supervisord", signal.SIGKILL, DOWN_TIMEOUT),
            ("", signal.SIGINT, 1.5),
            ("", signal.SIGKILL, DOWN_TIMEOUT),
        ):
            left = list(_find_processes(self.directory, module))
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            deadline = time.monotonic() + patience
            while (left := [process for process in left if _is_alive(process)]) and time.monotonic() < deadline:
                self._supervisor_answers()  # left alone it looks around once a second; a question wakes it
                time.sleep(0.02)
        if left:
            raise SandboxError(f"cannot stop process {left[0].pid}")

    def _write_env(self, variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            if not name.isidentifier() or "\n" in value:
                raise SandboxError(f"not an environment variable: {name}")
        # In one step: the clients read their rate in it all the time.
        for name, text in split_env(variables).items():
            write_private(self.directory / name, text)

    def up_state(self) -> SandboxState:
        """Return its state. Raises SandboxError if it is not up."""
        state = self.state
        if not self.is_up():
            cleans = command("down", self.directory)
            raise SandboxError(f"the sandbox in {self.directory} is not up; `{cleans}` cleans it up")
        return state

    def _rpc(self, state: SandboxState) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{state.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _call_supervisor(self, method: str, *arguments: object, unless: int | None = None) -> Any:
        """Ask the supervisor; its refusal with the code `unless` is no error."""
        try:
            return getattr(self._rpc(self.state), method)(*arguments)
        except xmlrpc.client.Fault as refusal:
            if refusal.faultCode != unless:
                raise SandboxError(f"supervisord: {refusal.faultString}") from None
        except OSError as error:
            raise SandboxError(f"supervisord does not answer: {error}") from None

    def _supervisor_answers(self) -> bool:
        try:
            return bool(self._rpc(self.state).getState())
        except (SandboxError, OSError, xmlrpc.client.Error, http.client.HTTPException):
            return False

    def _last_words(self) -> str:
        """Return the last log line of a program that does not run, for a one-line error."""
        with contextlib.suppress(Exception):
            for name in PROGRAMS:
                if name not in SERVICES and self.program_state(name) in ("BACKOFF", "FATAL", "EXITED"):
                    return self._last_log_line(name)
        return ""

    def _last_log_line(self, name: str) -> str:
        text = self.log(name).strip()
        # What ended a pod is the root cause of the last stack trace that it logged.
        said = [entry.error for entry in logs.read(text, str).entries if entry.error] or text.splitlines()
        return f"; {name}: {said[-1]}" if said else f"; {name} says nothing"


def _pod_environment(addresses: Addresses) -> dict[str, str]:
    return {
        "POSTGRES_HOST": "127.0.0.1",
        "POSTGRES_PORT": str(addresses.postgres_port),
        "POSTGRES_DB": DATABASE,
        "POSTGRES_USER": DATABASE,
        "POSTGRES_PASSWORD": addresses.passwords[DATABASE],
        "NATS_URL": addresses.app_nats_url,
        "SANDBOX_RECEIVER_URL": addresses.receiver_url,
    }


def _socket_path() -> Path:
    folder = tempfile.mkdtemp(prefix="runbook-sandbox-")
    if len(folder) > 80:
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="runbook-sandbox-", dir="/tmp")
    return Path(folder) / "supervisor.sock"


def supervisor_sections(socket: Path, log: Path, pid: Path) -> str:
    """Return the sections of a supervisord's configuration but those of its programs."""
    user = "user=root\n" if os.geteuid() == 0 else ""
    return (
        f"[unix_http_server]\nfile={socket}\nchmod=0700\n\n"
        f"[supervisord]\n{user}logfile={log}\npidfile={pid}\n\n"
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n\n"
        f"[supervisorctl]\nserverurl=unix://{socket}\n\n"
    )


def _supervisor_config(state: SandboxState) -> str:
    directory = state.directory
    python = sys.executable
    module = "runbook_lib.gameday.sandbox"
    commands = {
        "postgres": servers.postgres_command(directory),
        "nats": servers.nats_command(directory),
        "receiver": [python, "-m", f"{module}.receiver", str(directory)],
        **{app: [python, "-m", f"{module}.pod", app, str(directory)] for app in SERVICES},
        **{name: [python, "-m", f"{module}.intruder", name, str(directory)] for name in INTRUDERS},
    }
    sections = [supervisor_sections(state.socket, directory / "log/supervisord.log", directory / "supervisord.pid")]
    for name, arguments in commands.items():
        server = name in ("postgres", "nats")
        sections.append(
            f"[program:{name}]\n"
            f"command={shlex.join(arguments)}\n"
            f"directory={directory}\n"
            f"autostart={str(server).lower()}\n"
            # A pod that fails at its start is started again and again, as on Kubernetes.
            f"autorestart={str(name not in INTRUDERS).lower()}\n"
            f"startretries={0 if name in INTRUDERS else 1000}\n"
            f"stopsignal={'INT' if name == 'postgres' else 'TERM'}\n"
            "stopwaitsecs=3\n"
            # Pods need it to leave nobody behind; PostgreSQL looks after its own children.
            f"killasgroup={str(not server).lower()}\n"
            "redirect_stderr=true\n"
            f"stdout_logfile={directory}/log/{name}.log\n"
        )
    return "\n\n".join(sections) + "\n"


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _find_processes(directory: Path, module: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            ours = process.environ().get(_MARK) == str(directory) and process.pid != os.getpid()
            if ours and (not module or module in process.cmdline()):
                yield process
