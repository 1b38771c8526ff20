"""The whole sandbox under one supervisor: up, status, fault, heal, down."""

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import psycopg
from supervisor.xmlrpc import Faults, SupervisorTransport

from runbook_lib.sources import logs
from runbook_lib.usage import SANDBOX_TARGET

from . import history, servers
from .intruder import INTRUDERS
from .pod import FAILED_START
from .settings import read_env
from .state import DATABASE, FILE_NAME, Addresses, SandboxError, SandboxState, command, default_directory, load

PODS = ("entitlement", "notification")
PROGRAMS = ("postgres", "nats", "receiver", *PODS)
UP_TIMEOUT = 60.0
DOWN_TIMEOUT = 5.0

# Every process of a sandbox inherits this variable, which holds the folder: so `down` finds them all, even
# those whose supervisor is dead.
_MARK = "RUNBOOK_SANDBOX_OWNER"
_OWN_FILES = (
    *("postgres", "nats", "log", "run", "pods.env", "nats.conf", "supervisord.conf", "supervisord.pid"),
    *("postgres.password", "pods.tmp", "sandbox.tmp", FILE_NAME, "target.tmp", SANDBOX_TARGET),
)


@dataclass(frozen=True)
class Running:
    """What runs, as a person wants to see it; no passwords."""

    directory: Path
    programs: dict[str, str]  # program: state of the supervisor, RUNNING when well
    pods: dict[str, str]  # app: pod name
    fault: str | None
    addresses: dict[str, str]


class Programs:
    """The programs of one sandbox, in one folder, under one supervisor."""

    #: How strongly faults hit that come in numbers: 1 as usual, 2 twice as many.
    intensity = 1.0

    def __init__(self, directory: Path | str | None = None) -> None:
        self.directory = Path(directory or default_directory()).resolve()

    @property
    def state(self) -> SandboxState:
        """What is on disk about it; SandboxError when there is nothing."""
        return load(self.directory)

    # Life ---------------------------------------------------------------------------------------------------

    def up(
        self,
        rate: float = 5.0,
        hours: float = 6.0,
        settings: Mapping[str, str] | None = None,
        seed: int = 1,
    ) -> SandboxState:
        """Start everything, with `hours` of past traffic, and return when events flow end to end.

        `settings` are environment variables of the pods, such as NOTIFICATION_DELIVERY_BATCH_SIZE.
        """
        with self._alone():
            return self._up(rate, hours, settings or {}, seed)

    def check_free(self) -> None:
        """Raise SandboxError where `up` would refuse to begin."""
        with self._alone():
            pass

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """A folder that no sandbox is in, and that no other start of one takes meanwhile."""
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
            if self._answers():
                half = f"did not finish its start; `{command('down', self.directory)}` first"
                word = "is already up" if self.is_up() else half
                raise SandboxError(f"the sandbox in {self.directory} {word}")
            self._clear()  # what a crash left
            if any(self.directory.iterdir()):
                raise SandboxError(f"{self.directory} is not empty and holds no sandbox: name another folder")
            yield
        finally:
            os.close(held)

    def _up(self, rate: float, hours: float, settings: Mapping[str, str], seed: int) -> SandboxState:
        state = SandboxState(
            directory=self.directory,
            addresses=Addresses.choose(),
            socket=_socket_path(),
            rate=rate,
        )
        state.save()
        try:
            self._start(state, hours, {**settings, "SANDBOX_RATE": f"{rate:g}"}, seed)
        except BaseException as error:
            reason = self._last_words()
            self.down()
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise SandboxError(f"the sandbox did not come up: {error}{reason}") from error
        state.ready = True
        state.save()
        return state

    def down(self) -> bool:
        """Stop and delete everything, whatever state it is in; False when there was nothing."""
        there = self._clear()
        if there:
            with contextlib.suppress(OSError):  # somebody put a file of their own there
                self.directory.rmdir()
        return there

    def _clear(self) -> bool:
        try:
            state = self.state
        except SandboxError:
            state = None
        if state:
            self._stop_supervisord(state)
        _stop_all(self.directory)
        if state:
            shutil.rmtree(state.socket.parent, ignore_errors=True)
        if not (self.directory / FILE_NAME).exists():
            return False
        for name in _OWN_FILES:
            self._remove(self.directory / name)
        return True

    def _remove(self, path: Path) -> None:
        """Remove what is ours; whoever was interrupted at its start and still writes into it is ended first."""
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
                _stop_all(self.directory)
                time.sleep(0.1)

    def is_up(self) -> bool:
        """Is the sandbox there, ready, and its supervisor alive?"""
        return self._answers() and self.state.ready

    def status(self) -> Running:
        """What runs now."""
        state = self._up_state()
        addresses = state.addresses
        return Running(
            directory=self.directory,
            programs={name: self.program_state(name) for name in PROGRAMS},
            pods={app: self.pod(app)["pod"] for app in PODS},
            fault=state.fault,
            addresses={
                "postgres": f"127.0.0.1:{addresses.postgres_port}/{DATABASE}",
                "nats": f"127.0.0.1:{addresses.nats_port}",
                "nats monitoring": addresses.nats_monitor_url,
                "receiver": addresses.receiver_url,
                **{app: addresses.service_url(app) for app in PODS},
            },
        )

    def configure(self, settings: Mapping[str, str]) -> None:
        """Set environment variables of the pods; they count from each pod's next start."""
        self._up_state()
        self._write_env({**self.settings, **settings})

    @property
    def settings(self) -> dict[str, str]:
        """The environment variables of the pods, as they are now."""
        return read_env(self.directory / "pods.env")

    # One by one ---------------------------------------------------------------------------------------------

    def program_state(self, name: str) -> str:
        """The supervisor's word for a program: RUNNING, STOPPED, BACKOFF, ..."""
        return str(self._call("getProcessInfo", name)["statename"])

    def start(self, name: str) -> None:
        """Start a program unless it runs."""
        if self.program_state(name) not in ("RUNNING", "STARTING"):
            self._call("startProcess", name, False, unless=Faults.ALREADY_STARTED)  # a crash loop is one, too

    def stop(self, name: str) -> None:
        """Stop a program and wait for its end."""
        self._call("stopProcess", name, True, unless=Faults.NOT_RUNNING)

    def restart(self, name: str) -> None:
        """Stop and start a program: a pod comes back under a new name."""
        self.stop(name)
        self.start(name)

    def signal_program(self, name: str, number: str) -> None:
        """Send a signal, such as STOP, to a program."""
        self._call("signalProcess", name, number, unless=Faults.NOT_RUNNING)

    def pod(self, app: str) -> Any:
        """Pod name and the process ids of its parts."""
        try:
            return json.loads((self.directory / "run" / f"{app}.json").read_text())
        except FileNotFoundError:
            raise SandboxError(f"pod {app} has not started yet") from None

    def signal_part(self, app: str, part: str, number: signal.Signals) -> None:
        """Send a signal to one part of a pod."""
        try:
            process = psutil.Process(self.pod(app)["parts"][part])
            if process.environ().get(_MARK) != str(self.directory):
                raise psutil.NoSuchProcess(process.pid)  # its pid is somebody else's now
            process.send_signal(number)
        except psutil.Error:
            raise SandboxError(f"the {part} of {app} does not run") from None

    def signal_pod(self, app: str, number: signal.Signals) -> None:
        """Send a signal to a whole pod, the process and its parts."""
        for pid in (self.pod(app)["pid"], *self.pod(app)["parts"].values()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.environ().get(_MARK) == str(self.directory):
                    process.send_signal(number)

    def change_app_password(self, password: str | None) -> None:
        """Give the broker another password for the applications, or (None) the right one again."""
        addresses = self.state.addresses
        servers.write_nats_config(self.directory, addresses, password or addresses.passwords["nats-app"])
        self.signal_program("nats", "HUP")

    def wait_for_flow(self, timeout: float) -> None:
        """Return when an event has passed every hop since now; SandboxError when none does in time."""
        self.wait_for("events to flow end to end", self._flow(), timeout)

    def _flow(self) -> Callable[[], bool]:
        state = self.state
        if not state.rate:
            return self._subscribed
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
    def wait_for(what: str, condition: Callable[[], bool], timeout: float = 10.0) -> None:
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

    def _start(self, state: SandboxState, hours: float, settings: dict[str, str], seed: int) -> None:
        deadline = time.monotonic() + UP_TIMEOUT
        for name in ("log", "run"):
            (self.directory / name).mkdir()
        servers.initialise(self.directory, state.addresses)
        self._write_env({**_pod_environment(state.addresses), **settings})
        state.supervisor_config.touch(mode=0o600)
        state.supervisor_config.write_text(_supervisor_config(state))
        self._start_supervisord(state)
        servers.wait_for_postgres(state.addresses, lambda: self.program_state("postgres") != "FATAL")
        servers.wait_for_nats(state.addresses, lambda: self.program_state("nats") != "FATAL")
        servers.create_database(state.addresses)
        for name in ("receiver", "notification"):
            self.start(name)
        with psycopg.connect(state.addresses.app_url, autocommit=True) as connection:
            history.backfill(connection, datetime.now(UTC), hours, state.rate or 5.0, seed)
        # The load starts when the past is complete, so that there is no event in two minds about its order.
        self.start("entitlement")
        flows = self._flow()
        self.wait_for(
            "events to flow end to end",
            lambda: self._pods_stay_up() and flows(),
            deadline - time.monotonic(),
        )

    def _all_run(self) -> bool:
        return all(self.program_state(name) == "RUNNING" for name in PROGRAMS)

    def _pods_stay_up(self) -> bool:
        for app in PODS:
            log = self.directory / "log" / f"{app}.log"
            if self.program_state(app) in ("BACKOFF", "FATAL") or (log.exists() and FAILED_START in log.read_text()):
                # Its words at once: the supervisor is about to start it again, or has.
                raise SandboxError(f"pod {app} ends at its start{self._words_of(app)}")
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
        pid_file = self.directory / "supervisord.pid"
        self.wait_for("supervisord", lambda: pid_file.exists() and bool(self._rpc(state).getState()))
        pid = int(pid_file.read_text())
        state.supervisord = (pid, psutil.Process(pid).create_time())
        state.save()

    def _stop_supervisord(self, state: SandboxState) -> None:
        """Let it stop its programs and collect them, if it still lives."""
        if state.supervisord is None:
            return
        pid, created = state.supervisord
        try:
            supervisord = psutil.Process(pid)
            if supervisord.create_time() != created:
                return
            supervisord.terminate()
        except psutil.NoSuchProcess:
            return
        deadline = time.monotonic() + DOWN_TIMEOUT
        while _is_alive(supervisord) and time.monotonic() < deadline:
            # Left alone it looks around once a second; a question wakes it.
            with contextlib.suppress(OSError, xmlrpc.client.Error, http.client.HTTPException):
                self._rpc(state).getState()
            time.sleep(0.05)

    def _write_env(self, variables: Mapping[str, str]) -> None:
        for name, value in variables.items():
            if not name.isidentifier() or "\n" in value:
                raise SandboxError(f"not an environment variable: {name}")
        path = self.directory / "pods.env"
        draft = path.with_suffix(".tmp")
        draft.touch(mode=0o600)
        draft.write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
        draft.replace(path)  # in one step: the clients read their rate in it all the time

    def _up_state(self) -> SandboxState:
        state = self.state
        if not self.is_up():
            cleans = command("down", self.directory)
            raise SandboxError(f"the sandbox in {self.directory} is not up; `{cleans}` cleans it up")
        return state

    def _rpc(self, state: SandboxState) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{state.socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor

    def _call(self, method: str, *arguments: object, unless: int | None = None) -> Any:
        """Ask the supervisor; its refusal with the code `unless` is no error."""
        try:
            return getattr(self._rpc(self.state), method)(*arguments)
        except xmlrpc.client.Fault as refusal:
            if refusal.faultCode != unless:
                raise SandboxError(f"supervisord: {refusal.faultString}") from None
        except OSError as error:
            raise SandboxError(f"supervisord does not answer: {error}") from None

    def _answers(self) -> bool:
        try:
            return bool(self._rpc(self.state).getState())
        except (SandboxError, OSError, xmlrpc.client.Error, http.client.HTTPException):
            return False

    def _subscribed(self) -> bool:
        log = self.directory / "log" / "notification.log"
        return "terminated advisory subscriber started" in log.read_text()

    def _last_words(self) -> str:
        """The last log line of a program that does not run, for the one line that a person sees."""
        with contextlib.suppress(Exception):
            for name in PROGRAMS:
                if name not in PODS and self.program_state(name) in ("BACKOFF", "FATAL", "EXITED"):
                    return self._words_of(name)
        return ""

    def _words_of(self, name: str) -> str:
        lines = (self.directory / "log" / f"{name}.log").read_text().strip().splitlines()
        # What ended a pod is the root cause of the last stack trace that it logged.
        said = [record.error for record in logs.read(lines) if record.error] or lines
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


def _supervisor_config(state: SandboxState) -> str:
    directory = state.directory
    python = sys.executable
    module = "runbook_lib.packs.entitlement.sandbox"
    commands = {
        "postgres": servers.postgres_command(directory),
        "nats": servers.nats_command(directory),
        "receiver": [python, "-m", f"{module}.receiver", str(directory)],
        **{app: [python, "-m", f"{module}.pod", app, str(directory)] for app in PODS},
        **{name: [python, "-m", f"{module}.intruder", name, str(directory)] for name in INTRUDERS},
    }
    user = "user=root\n" if os.geteuid() == 0 else ""
    sections = [
        f"[unix_http_server]\nfile={state.socket}\nchmod=0700",
        f"[supervisord]\n{user}logfile={directory}/log/supervisord.log\npidfile={directory}/supervisord.pid",
        "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
        f"[supervisorctl]\nserverurl=unix://{state.socket}",
    ]
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


def _stop_all(directory: Path) -> None:
    """Stop whatever is left of a sandbox by its pid: politely first, so that PostgreSQL frees its memory."""
    # The supervisor first, and at once: it would start again what is stopped after it.
    for process in _processes(directory):
        with contextlib.suppress(psutil.Error):
            if "supervisor.supervisord" in process.cmdline():
                process.kill()
    # SIGINT is PostgreSQL's fast shutdown, and an ordinary end for everybody else.
    for number, patience in ((signal.SIGINT, 1.5), (signal.SIGKILL, DOWN_TIMEOUT)):
        left = list(_processes(directory))
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        left = _wait_gone(left, patience)
    if left:
        raise SandboxError(f"cannot stop process {left[0].pid}")


def _wait_gone(processes: list[psutil.Process], timeout: float) -> list[psutil.Process]:
    """Wait for their ends; those still there. A zombie has ended, whenever init collects it."""
    deadline = time.monotonic() + timeout
    while left := [process for process in processes if _is_alive(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running()) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _processes(directory: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == str(directory) and process.pid != os.getpid():
                yield process
