"""The receiver of alerts, an ASGI application: alerts in, and for people the incidents that came of them.

Nothing that arrives is believed: a body is read under limits, answered with one line of JSON, and accepted only once
the journal has it on disk. Whatever waits for a disk or another machine does so in a thread, never in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import quote, urlsplit

import fsspec
import pandas as pd
import prometheus_client
from fsspec.implementations.local import LocalFileSystem
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runbook_lib import messages
from runbook_lib.alerts.alert import Alert, BadAlert, from_alertmanager, from_cloudevent
from runbook_lib.alerts.auth import Auth
from runbook_lib.alerts.journal import Accepted, Journal, JournalError
from runbook_lib.alerts.metrics import Metrics
from runbook_lib.alerts.reads import Reads
from runbook_lib.archive import dossier
from runbook_lib.parameters import validate
from runbook_lib.settings import Settings
from runbook_lib.store import Archive
from runbook_lib.usage import UsageError
from runbook_lib.view import render

_log = logging.getLogger(__name__)

#: Bytes of a body. What is longer is read on to `DRAINED` and thrown away, so that its sender hears why.
MAX_BODY, DRAINED = 1_000_000, 8_000_000
#: Bytes of all headers.
MAX_HEADERS = 32_768
#: Seconds in which a body must have arrived.
BODY_S = 10.0
#: Seconds that a body waits for those before it, and after which a sender is asked to try again.
TURN_S, RETRY_S = 5.0, 10
#: Seconds between two looks at what `/readyz` speaks of, and for which one answer of it waits for a look.
LOOK_S, WAIT_S = 10.0, 3.0
#: Incidents of a page; jobs of an incident, the newest.
PAGE, JOBS = 20, 8

_JSON, _EVENT = "application/json", "application/cloudevents+json"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".ipynb": "application/x-ipynb+json",
}
#: Names of this machine: where no secret is asked for, a page of another name must not reach us by DNS.
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_CLOSE = {"connection": "close"}
#: Asked every few seconds: in the log only where they fail.
_PROBES = ("/healthz", "/readyz", "/metrics")


class Works(Protocol):
    """What carries out the jobs that the journal holds."""

    @property
    def alive(self) -> bool:
        """Whether it still does."""
        ...

    def wake(self) -> None:
        """Look into the journal now."""
        ...


class Receiver:
    """The endpoints; `app` is what a server is given."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Works,
        config: Settings,
        output: str,
        metrics: Metrics,
        auth: Auth,
        lang: str,
        look_s: float = LOOK_S,
    ) -> None:
        self.journal, self.dispatcher, self.config = journal, dispatcher, config
        self.output, self.metrics, self.auth, self.lang = output, metrics, auth, lang
        self.reads = Reads(journal.file)
        self._turn = asyncio.Lock()
        self._looks = [
            _Look("journal", self._journal_is_writable, look_s),
            _Look("output", lambda: _write_somewhere(output), look_s),
        ]
        app = Starlette(
            routes=[
                Route("/alertmanager", self.alertmanager, methods=["POST"]),
                Route("/events", self.events, methods=["POST"]),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.shown_metrics),
                Route("/", self.page),
                Route("/seals/{incident}", self.seals),
                Route("/reads", self.seals_of_reads),
                Route("/incidents/{incident}", self.incident),
                Route("/incidents/{incident}/{name:path}", self.file),
            ],
            exception_handlers={
                HTTPException: self._refused,
                ClientDisconnect: lambda request, e: Response(status_code=400),  # nobody reads it
                Exception: self._failed,
            },
        )
        app.router.redirect_slashes = False
        self.app: ASGIApp = _Guard(app)

    # Alerts.

    async def alertmanager(self, request: Request) -> Response:
        """Prometheus Alertmanager's webhook, version 4."""
        return await self._take(request, lambda headers, body: from_alertmanager(body), (_JSON,))

    async def events(self, request: Request) -> Response:
        """A CloudEvent 1.0, structured or binary."""
        return await self._take(request, from_cloudevent, (_JSON, _EVENT))

    async def _take(
        self, request: Request, read: Callable[[Mapping[str, str], bytes], list[Alert]], types: tuple[str, ...]
    ) -> Response:
        body = await _body(request)
        self._known_host(request)
        if not self.auth.may_send(request.headers, body):
            raise HTTPException(401, "a token or a signature is needed", {"www-authenticate": self.auth.challenge})
        # A browser sends a form of another site without asking, but none of these types.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() not in types:
            raise HTTPException(415, f"the content type must be {' or '.join(types)}")
        try:
            alerts = await run_in_threadpool(read, dict(request.headers), body)
        except BadAlert as e:
            raise HTTPException(400, str(e)) from None
        try:
            accepted = await self._accept(alerts)
        except JournalError as e:
            _log.warning("%s", e)
            raise HTTPException(503, "the journal cannot be written now", {"retry-after": str(RETRY_S)}) from None
        self.metrics.accepted.inc(len(alerts))
        self.metrics.deduplicated.inc(accepted.counted)
        self.dispatcher.wake()
        said = {"accepted": len(alerts), "jobs": list(accepted.jobs), "counted": accepted.counted}
        return JSONResponse(said, 202)

    async def _accept(self, alerts: list[Alert]) -> Accepted:
        """One body at a time: behind a journal that is locked, each would wait for all before it."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._turn.acquire()
        except TimeoutError:
            raise JournalError("the journal has been busy for too long") from None
        try:
            return await run_in_threadpool(self.journal.accept, alerts, self.config, time.time())
        finally:
            self._turn.release()

    # How it is.

    async def healthz(self, request: Request) -> Response:
        """Whether the process works."""
        self._known_host(request)
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Whether alerts can be accepted and carried out; 503 names what does not work."""
        self._known_host(request)
        seen = await asyncio.gather(*(look.problem() for look in self._looks))
        problems = {look.name: problem for look, problem in zip(self._looks, seen, strict=True) if problem}
        if not self.dispatcher.alive:
            problems["dispatcher"] = "does not run"
        said = {"ready": not problems} | ({"problems": problems} if problems else {})
        return JSONResponse(said, 503 if problems else 200)

    def shown_metrics(self, request: Request) -> Response:
        """What Prometheus scrapes."""
        self._may_read(request)
        try:
            counts: Mapping[str, float] = self.journal.counts()
        except JournalError:
            counts = {}
        self.metrics.waiting.set(counts.get("jobs_waiting", math.nan))
        self.metrics.running.set(counts.get("jobs_running", math.nan))
        shown = prometheus_client.generate_latest(self.metrics.registry)
        return Response(shown, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    def _journal_is_writable(self) -> None:
        # Nothing to accept still begins and ends a transaction.
        self.journal.accept((), self.config, time.time())

    # For people.

    def page(self, request: Request) -> Response:
        """The incidents, newest first."""
        self._reader(request)
        lang = request.query_params.get("lang", "")
        lang = lang if lang in messages.LANGUAGES else self.lang
        number = _number(request.query_params.get("page", ""))
        try:
            incidents = self.journal.incidents(PAGE + 1, (number - 1) * PAGE)
            counts = self.journal.counts()
        except JournalError as e:
            _log.warning("%s", e)
            raise HTTPException(503, "the journal cannot be read now", {"retry-after": str(RETRY_S)}) from None
        shown = incidents[:PAGE]
        there = {i.id for i in shown if dossier.INDEX in self._names(i.id)}
        text = render.html(
            "receiver",
            lang,
            incidents=shown,
            there=there,
            index=dossier.INDEX,
            counts=counts,
            number=number,
            more=len(incidents) > PAGE,
            newest=JOBS,
            languages=messages.LANGUAGES,
            moment=_moment,
            now=time.time(),
            url=f"{request.url.scheme}://{request.headers.get('host', '')}",
            auth=self.auth,
        )
        return Response(text, media_type="text/html")

    def incident(self, request: Request) -> Response:
        """An incident by its name alone: to the first page of its dossier."""
        self._reader(request)
        id_ = request.path_params["incident"]
        if dossier.INDEX not in self._names(id_):
            raise HTTPException(404, "no such dossier")
        # Relative, so that it also holds behind a proxy that has put a folder in front.
        return RedirectResponse(f"{id_}/{dossier.INDEX}", 307)

    def seals(self, request: Request) -> Response:
        """What was told of an incident's seal and when, a line each: a witness for `runbook verify`."""
        self._reader(request)
        try:
            told = self.journal.seals(request.path_params["incident"])
        except JournalError as e:
            _log.warning("%s", e)
            raise HTTPException(503, "the journal cannot be read now", {"retry-after": str(RETRY_S)}) from None
        if not told:
            raise HTTPException(404, "no seal of this incident is known")
        return PlainTextResponse("".join(f"{_moment(at)} {seal}\n" for at, seal in told))

    def seals_of_reads(self, request: Request) -> Response:
        """How far the access log has come, of its two newest days: a witness, as above."""
        self._reader(request)
        return PlainTextResponse("".join(f"{told}\n" for told in self.reads.seals()))

    def file(self, request: Request) -> Response:
        """A file of an incident's dossier, as the archive lists it."""
        self._reader(request)
        id_, name = request.path_params["incident"], request.path_params["name"]
        if not name and dossier.INDEX in self._names(id_):
            return RedirectResponse(dossier.INDEX, 307)
        content = self._content(id_, name) if name else None
        if content is None:
            raise HTTPException(404, "no such file")
        suffix = Path(name).suffix
        headers = {"content-type": _TYPES.get(suffix, "application/octet-stream")}
        if suffix == ".ipynb" or suffix not in _TYPES:
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(Path(name).name, safe='')}"
        return Response(content, headers=headers)

    def _names(self, folder: str) -> list[str]:
        """What lies in an incident's folder, or in the evidence beneath it; [] where there is no such incident."""
        try:
            validate({"incident_id": folder.removesuffix("/evidence")})
        except UsageError:
            return []
        try:
            fsspec.core.url_to_fs(self.output)[0].invalidate_cache()  # others write there
            return Archive(self.output, folder).names()
        except Exception as e:  # each kind of store has its own
            _log.warning("the archive does not answer: %s", _one_line(e))
            raise HTTPException(503, "the archive does not answer", {"retry-after": str(RETRY_S)}) from None

    def _content(self, incident: str, name: str) -> bytes | None:
        """A file that the archive lists; None for any other name."""
        evidence, _, last = name.rpartition("/")
        if evidence not in ("", "evidence") or last.startswith("."):
            return None
        if last not in self._names(f"{incident}/{evidence}" if evidence else incident):
            return None
        archive = Archive(self.output, incident)
        if (root := archive.local) and not (root / name).resolve().is_relative_to(root.resolve()):
            return None  # a link that leads out
        try:
            return archive.read(name)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except Exception as e:
            _log.warning("the archive does not answer: %s", _one_line(e))
            raise HTTPException(503, "the archive does not answer", {"retry-after": str(RETRY_S)}) from None

    # Who may.

    def _reader(self, request: Request) -> None:
        """Let nobody read who may not, and nothing be read that is not in the access log."""
        who = self._may_read(request)
        try:
            self.reads.keep(who, _path(request.scope["path"]), _address(request))
        except OSError as e:
            _log.warning("the access log cannot be written: %s", _one_line(e))
            raise HTTPException(503, "the access log cannot be written", {"retry-after": str(RETRY_S)}) from None

    def _may_read(self, request: Request) -> str:
        self._known_host(request)
        who = self.auth.reader(request.headers, _address(request))
        if who is None:
            raise HTTPException(401, "a token is needed", {"www-authenticate": 'Basic realm="runbook"'})
        return who

    def _known_host(self, request: Request) -> None:
        if not self.auth.needed and _host(request.headers.get("host", "")) not in _OWN_NAMES:
            raise HTTPException(421, "without a token only localhost is answered", _CLOSE)

    # Errors.

    def _refused(self, request: Request, e: Exception) -> Response:
        assert isinstance(e, HTTPException)  # noqa: S101 - by the table above
        self.metrics.refused.labels(str(e.status_code)).inc()
        return JSONResponse({"error": e.detail}, e.status_code, dict(e.headers or {}))

    def _failed(self, request: Request, e: Exception) -> Response:
        self.metrics.refused.labels("500").inc()
        return JSONResponse({"error": "the receiver failed; its log says where"}, 500, _CLOSE)


class _Guard:
    """Around everything: headers of each answer, a line of the log, and no exception beyond."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, status = time.monotonic(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                own = [(k.encode(), v.encode()) for k, v in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        app = self._app
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADERS:
            app = JSONResponse({"error": f"the headers are longer than {MAX_HEADERS} bytes"}, 431, _CLOSE)
        try:
            await app(scope, receive, answer)
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            _log.error("%s line %s: %s", Path(where.filename).name, where.lineno, _one_line(e))
        finally:
            # Neither headers nor what stands behind "?": a secret could.
            path, ms = _path(scope["path"]), (time.monotonic() - began) * 1000
            level = logging.DEBUG if path in _PROBES and status == 200 else logging.INFO
            _log.log(level, "%s %s %s %d %.0f ms", (scope["client"] or ["-"])[0], scope["method"], path, status, ms)


class _Look:
    """One thing that `/readyz` looks at, in a thread, not more often than every so many seconds, once at a time."""

    def __init__(self, name: str, look: Callable[[], None], every_s: float) -> None:
        self.name = name
        self._look, self._every_s = look, every_s
        self._task: asyncio.Task[str] | None = None
        self._asked = -math.inf

    async def problem(self) -> str:
        """What is wrong, a few words; "" when nothing is."""
        if self._task is None or (self._task.done() and time.monotonic() - self._asked >= self._every_s):
            self._asked = time.monotonic()
            self._task = asyncio.create_task(run_in_threadpool(self._seen))
        try:
            return await asyncio.wait_for(asyncio.shield(self._task), WAIT_S)
        except TimeoutError:
            return "no answer"

    def _seen(self) -> str:
        try:
            self._look()
        except Exception as e:  # each kind of store has its own
            _log.warning("not ready: %s: %s", self.name, _one_line(e))
            return "cannot be written"
        return ""


def _write_somewhere(output: str) -> None:
    """Write what nobody reads beside the incidents. Raises what the store raises."""
    fs, path = fsspec.core.url_to_fs(output)
    if isinstance(fs, LocalFileSystem):
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"1")
    else:
        fs.pipe_file(f"{path.rstrip('/')}/.writable", b"1")


async def _body(request: Request) -> bytes:
    """The body, within the limits of size and time; otherwise the connection ends with the answer."""
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= MAX_BODY:
                    kept += chunk
                elif size > DRAINED:
                    break
    except TimeoutError:
        raise HTTPException(408, f"the body did not arrive within {BODY_S:.0f} s", _CLOSE) from None
    if size > MAX_BODY:
        raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes", _CLOSE)
    return bytes(kept)


def _path(path: str) -> str:
    """A path as it may stand in a log."""
    return quote(path, safe="/:")[:200]


def _address(request: Request) -> str:
    """Who is at the other end of the connection, whatever a header says."""
    return request.client.host if request.client else ""


def _host(header: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _number(text: str) -> int:
    """The number of a page, from 1; 1 for whatever is none."""
    return max(int(text), 1) if re.fullmatch(r"[0-9]{1,6}", text) else 1


def _moment(seconds: float) -> str:
    return render.when(pd.Timestamp(seconds, unit="s", tz="UTC"))


def _one_line(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]
