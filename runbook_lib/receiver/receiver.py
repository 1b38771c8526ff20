"""The receiver of alerts, an ASGI application: it accepts alerts and serves the incidents' pages.

All input is untrusted: a body is read with limits of size and time, answered with one line of JSON, and accepted only
after the journal has written it to disk. Disk and network I/O runs in threads, never in the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import h11
import pandas as pd
import prometheus_client
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runbook_lib.book import messages
from runbook_lib.book.parameters import validate
from runbook_lib.dossier import overview
from runbook_lib.model.usage import UsageError
from runbook_lib.receiver.alert import MAX_BODY, Alert, BadAlert, from_alertmanager, log_refused
from runbook_lib.receiver.auth import Auth
from runbook_lib.receiver.database import JournalError
from runbook_lib.receiver.dispatcher import Dispatcher
from runbook_lib.receiver.journal import Journal
from runbook_lib.receiver.metrics import Metrics
from runbook_lib.receiver.routes import is_expected
from runbook_lib.receiver.work import Accepted
from runbook_lib.sources.settings import Settings
from runbook_lib.store.archive import Archive
from runbook_lib.view import render

R = TypeVar("R")
_log = logging.getLogger(__name__)

#: A body longer than MAX_BODY is read up to so many bytes and discarded, so that its sender gets the answer.
DRAINED = 8_000_000
#: Maximum bytes of all headers.
MAX_HEADERS = 32_768
#: Seconds in which a body must have arrived.
BODY_S = 10.0
#: Seconds that a body waits for the bodies before it; and seconds after which a refused sender should try again.
TURN_S, RETRY_S = 5.0, 10
#: Threads that read bodies; pages and probes have others, so that an alert waits for none of them.
ACCEPTING = 4
#: Seconds between two probes of `/readyz`, and seconds that a request waits for a probe.
PROBE_S, WAIT_S = 10.0, 3.0
#: The folder beside the incidents in which `/readyz` tests that the output can be written.
PROBE = ".probe"
#: Seconds that a page waits for a store of artifacts.
STORE_S = 10.0
#: Incidents on a page; newest jobs shown of an incident.
PAGE, JOBS = 20, 8

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".jsonl": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".png": "image/png",
    ".ipynb": "application/x-ipynb+json",
}
#: Host names of this machine. Without a secret only these are accepted, against DNS rebinding.
_OWN_NAMES = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "content-security-policy": f"{render.POLICY}; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_CLOSE = {"connection": "close"}
_UNREAD = "the archive cannot be read now"
#: Paths that are requested every few seconds: logged only if they fail.
_PROBES = ("/healthz", "/readyz", "/metrics")


class Receiver:
    """The endpoints; `app` is the ASGI application."""

    def __init__(
        self,
        journal: Journal,
        dispatcher: Dispatcher,
        config: Settings,
        output: str,
        metrics: Metrics,
        auth: Auth,
        probe_s: float = PROBE_S,
    ) -> None:
        self.journal, self.dispatcher, self.config = journal, dispatcher, config
        self.output, self.metrics, self.auth = output, metrics, auth
        self._turn, self._accepting = asyncio.Lock(), ThreadPoolExecutor(ACCEPTING, "accepting")
        self._probes = [
            _HealthProbe("journal", journal.probe, probe_s),
            _HealthProbe("output", self._write_output, probe_s),
        ]
        app = Starlette(
            routes=[
                Route("/alertmanager", self.alertmanager, methods=["POST"]),
                Route("/healthz", self.healthz),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics_page),
                Route("/", self.page),
                Route("/seals/{incident}", self.seals),
                Route("/incidents/{incident}", self.incident),
                Route("/incidents/{incident}/{name:path}", self.file),
            ],
            exception_handlers={
                HTTPException: self._error_response,
                JournalError: self._journal_busy,
                ClientDisconnect: lambda request, e: Response(status_code=400),  # the client is gone
                Exception: self._internal_error,
            },
        )
        app.router.redirect_slashes = False
        self.app: ASGIApp = _ResponseGuard(app)

    # Alerts.

    async def alertmanager(self, request: Request) -> Response:
        """Accept Prometheus Alertmanager's webhook, version 4."""

        def refuse(problem: str) -> None:
            log_refused(problem)
            self.metrics.refused_alerts.inc()

        body = await _read_body(request)
        self._check_host(request)
        if not self.auth.may_send(request.headers):
            raise HTTPException(401, "a token is needed", {"www-authenticate": 'Bearer realm="runbook"'})
        # Against cross-site requests: a browser sends another site's form without a preflight, but not this type.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "the content type must be application/json")
        try:
            alerts = await self._run_accepting(from_alertmanager, body, refuse)
        except BadAlert as e:
            raise HTTPException(400, str(e)) from None
        sent, alerts = len(alerts), [a for a in alerts if is_expected(a, self.config)]
        accepted = await self._accept_alerts(alerts)
        self.metrics.accepted.inc(len(alerts))
        self.metrics.deduplicated.inc(accepted.counted)
        self.dispatcher.wake()
        answer = {"accepted": len(alerts), "jobs": list(accepted.jobs), "counted": accepted.counted}
        if unrouted := sent - len(alerts):
            answer["unrouted"] = unrouted
        return JSONResponse(answer, 202)

    async def _accept_alerts(self, alerts: list[Alert]) -> Accepted:
        """Store alerts, one body at a time: with a locked journal, each thread would wait for all before it."""
        try:
            async with asyncio.timeout(TURN_S) as limit, self._turn:
                limit.reschedule(None)  # its turn has come
                return await self._run_accepting(self.journal.accept, alerts, self.config, self.journal.clock.now())
        except TimeoutError:
            raise JournalError("the journal has been busy for too long") from None

    async def _run_accepting(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function in a thread that only serves senders."""
        return await asyncio.get_running_loop().run_in_executor(self._accepting, function, *arguments)

    # Health.

    async def healthz(self, request: Request) -> Response:
        """Answer 200 while the process works."""
        self._check_host(request)
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 if alerts can be accepted and investigated, else 503 with the problems."""
        self._check_host(request)
        found = await asyncio.gather(*(probe.problem() for probe in self._probes))
        problems = {probe.name: problem for probe, problem in zip(self._probes, found, strict=True) if problem}
        if not self.dispatcher.alive:
            problems["dispatcher"] = "does not run"
        answer = {"ready": not problems} | ({"problems": problems} if problems else {})
        return JSONResponse(answer, 503 if problems else 200)

    async def metrics_page(self, request: Request) -> Response:
        """Return the metrics for Prometheus; not in a thread of the pages, which may all wait for a store."""
        self._authorize_reader(request)
        try:
            counts: Mapping[str, float] = await asyncio.to_thread(self.journal.counts)
        except JournalError:
            counts = {}
        self.metrics.waiting.set(counts.get("jobs_waiting", math.nan))
        self.metrics.running.set(counts.get("jobs_running", math.nan))
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, headers={"content-type": prometheus_client.CONTENT_TYPE_LATEST})

    def _write_output(self) -> None:
        archive = Archive(self.output, PROBE)
        archive.make()
        archive.write("evidence/.keep", bytes(4096))  # a full disk still takes an empty file

    # Pages.

    def page(self, request: Request) -> Response:
        """Return the page of incidents, newest first."""
        self._authorize_reader(request)
        lang = request.query_params.get("lang", "")
        lang = lang if lang in messages.LANGUAGES else messages.language()
        number = _page_number(request.query_params.get("page", ""))
        incidents = self.journal.incidents(PAGE + 1, (number - 1) * PAGE)
        shown = incidents[:PAGE]
        ids, every = [i.id for i in shown], self._archive("")
        has_page = dict(zip(ids, every.read_each(partial(self._has_page, every), ids), strict=True))
        with messages.using(lang):
            text = render.html(
                "receiver",
                incidents=shown,
                has_page=has_page,
                index=overview.INDEX,
                counts=self.journal.counts(),
                progress=dict(self.dispatcher.progress),
                number=number,
                more=len(incidents) > PAGE,
                newest=JOBS,
                languages=messages.LANGUAGES,
                moment=_format_time,
                now=time.time(),
                url=f"{request.url.scheme}://{request.headers.get('host', '')}",
                auth=self.auth,
            )
        return Response(text, media_type="text/html")

    def incident(self, request: Request) -> Response:
        """Redirect from an incident's name to its dossier's index page."""
        self._authorize_reader(request)
        id_ = request.path_params["incident"]
        if overview.INDEX not in self._list_names(self._archive(id_)):
            raise HTTPException(404, "no such dossier")
        # Relative, so that it also works behind a proxy that adds a path prefix.
        return RedirectResponse(f"{id_}/{overview.INDEX}", 307)

    def seals(self, request: Request) -> Response:
        """Return an incident's seals with their times, one a line: checkpoints for `runbook verify`."""
        self._authorize_reader(request)
        seals = self.journal.seals(request.path_params["incident"])
        if not seals:
            raise HTTPException(404, "no seal of this incident is known")
        return PlainTextResponse("".join(f"{_format_time(at)} {seal}\n" for at, seal in seals))

    def file(self, request: Request) -> Response:
        """Return a file of an incident's dossier, if the archive lists it."""
        self._authorize_reader(request)
        archive, name = self._archive(request.path_params["incident"]), request.path_params["name"]
        if not name and overview.INDEX in self._list_names(archive):
            return RedirectResponse(overview.INDEX, 307)
        content = self._read_listed_file(archive, name) if name else None
        if content is None:
            raise HTTPException(404, "no such file")
        suffix = Path(name).suffix
        headers = {"content-type": _TYPES.get(suffix, "application/octet-stream")}
        if suffix == ".ipynb" or suffix not in _TYPES:
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(Path(name).name, safe='')}"
        return Response(content, headers=headers)

    def _archive(self, incident: str) -> Archive:
        return Archive(self.output, incident).patient(STORE_S)

    def _list_names(self, archive: Archive, folder: str = "") -> list[str]:
        """Return the file names in an incident's folder, or in one below it; [] for an unknown incident."""
        try:
            validate({"incident_id": archive.incident})
        except UsageError:
            return []
        try:
            return replace(archive, incident=f"{archive.incident}/{folder}".rstrip("/")).names()
        except Exception as e:  # each kind of store has its own exceptions
            raise _unavailable(_UNREAD, e) from None

    def _has_page(self, every: Archive, incident: str) -> bool | None:
        """Return whether an incident has a page; None if that could not be read."""
        try:
            return overview.INDEX in self._list_names(replace(every, incident=incident))
        except HTTPException:
            return None

    def _read_listed_file(self, archive: Archive, name: str) -> bytes | None:
        """Return a file's content if the archive lists the file, else None."""
        folder, _, last = name.rpartition("/")
        if folder not in ("", "evidence") or last.startswith(".") or last not in self._list_names(archive, folder):
            return None
        try:
            if (root := archive.local) and not (root / name).resolve().is_relative_to(root.resolve()):
                return None  # a symbolic link to a file outside the folder
            return archive.read_file(name)
        except Exception as e:
            raise _unavailable(_UNREAD, e) from None

    # Access.

    def _authorize_reader(self, request: Request) -> None:
        self._check_host(request)
        if not self.auth.may_read(request.headers):
            raise HTTPException(401, "a token is needed", {"www-authenticate": 'Basic realm="runbook"'})

    def _check_host(self, request: Request) -> None:
        if not self.auth.needed and _host_name(request.headers.get("host", "")) not in _OWN_NAMES:
            raise HTTPException(421, "without a token only localhost is answered", _CLOSE)

    # Errors.

    def _error_response(self, request: Request, e: Exception) -> Response:
        assert isinstance(e, HTTPException)  # noqa: S101 - by the table above
        self.metrics.refused.labels(str(e.status_code)).inc()
        return JSONResponse({"error": e.detail}, e.status_code, dict(e.headers or {}))

    def _journal_busy(self, request: Request, e: Exception) -> Response:
        done = "written" if request.method == "POST" else "read"
        return self._error_response(request, _unavailable(f"the journal cannot be {done} now", e))

    def _internal_error(self, request: Request, e: Exception) -> Response:
        self.metrics.refused.labels("500").inc()
        return JSONResponse({"error": "the receiver failed; its log says where"}, 500, _CLOSE)


class _ResponseGuard:
    """Wraps the application: adds the security headers, logs each request, and catches every exception."""

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
        elif (scope["method"], scope["path"]) != ("POST", "/alertmanager"):
            app = await _refuse_body(scope, receive) or app
        try:
            await app(scope, receive, answer)
        except h11.LocalProtocolError:
            _log.debug("what followed the request was no HTTP, and uvicorn has answered that")
        except asyncio.CancelledError:  # by uvicorn, at the end of its time to stop
            if not status:
                await JSONResponse({"error": "the receiver stops: send it again"}, 503, _CLOSE)(scope, receive, answer)
        except Exception as e:
            where = traceback.extract_tb(e.__traceback__)[-1]
            _log.error("%s line %s: %s", Path(where.filename).name, where.lineno, _one_line(e))
        finally:
            # Without headers and the query string: they may contain a secret.
            path, ms = _quote_path(scope["path"]), (time.monotonic() - began) * 1000
            level = logging.DEBUG if path in _PROBES and status == 200 else logging.INFO
            _log.log(level, "%s %s %s %d %.0f ms", (scope["client"] or ["-"])[0], scope["method"], path, status, ms)


class _HealthProbe:
    """One probe of `/readyz`: runs in a thread, at most once every `every_s` seconds and one at a time."""

    def __init__(self, name: str, probe: Callable[[], None], every_s: float) -> None:
        self.name = name
        self._probe, self._every_s, self._thread = probe, every_s, ThreadPoolExecutor(1, name)
        self._task: asyncio.Future[str] | None = None
        self._asked = -math.inf

    async def problem(self) -> str:
        """Return the problem in a few words; "" for none."""
        if self._task is None or (self._task.done() and time.monotonic() - self._asked >= self._every_s):
            self._asked = time.monotonic()
            self._task = asyncio.get_running_loop().run_in_executor(self._thread, self._run_probe)
        try:
            return await asyncio.wait_for(asyncio.shield(self._task), WAIT_S)
        except TimeoutError:
            return "no answer"

    def _run_probe(self) -> str:
        try:
            self._probe()
        except Exception as e:  # each kind of store has its own exceptions
            _log.warning("not ready: %s: %s", self.name, _one_line(e))
            return "cannot be written"
        return ""


async def _refuse_body(scope: Scope, receive: Receive) -> ASGIApp | None:
    """Read a body that nobody needs, within the limits; return the answer if it does not keep them."""
    try:
        await _read_body(Request(scope, receive))
    except HTTPException as e:
        return JSONResponse({"error": e.detail}, e.status_code, dict(e.headers or {}))
    except ClientDisconnect:
        return Response(status_code=400)
    return None


async def _read_body(request: Request) -> bytes:
    """Return the body, within the limits of size and time; otherwise the answer closes the connection."""
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
        # No 408: Alertmanager sends an alert again only after 5xx.
        headers = _CLOSE | {"retry-after": str(RETRY_S)}
        raise HTTPException(503, f"the body did not arrive within {BODY_S:.0f} s", headers) from None
    if size > MAX_BODY:
        raise HTTPException(413, f"the body is longer than {MAX_BODY} bytes", _CLOSE)
    return bytes(kept)


def _unavailable(problem: str, e: Exception) -> HTTPException:
    """Log a temporary problem, and return the 503 answer with Retry-After."""
    _log.warning("%s: %s", problem, _one_line(e))
    return HTTPException(503, problem, {"retry-after": str(RETRY_S)})


def _quote_path(path: str) -> str:
    """Return a path quoted and truncated for a log."""
    return quote(path, safe="/:")[:200]


def _host_name(header: str) -> str | None:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def _page_number(text: str) -> int:
    """Return a page number, from 1; 1 for an invalid one."""
    return max(int(text), 1) if re.fullmatch(r"[0-9]{1,6}", text) else 1


def _format_time(seconds: float) -> str:
    return render.when(pd.Timestamp(seconds, unit="s", tz="UTC"))


def _one_line(e: Exception) -> str:
    return " ".join(f"{type(e).__name__}: {e}".split())[:300]
