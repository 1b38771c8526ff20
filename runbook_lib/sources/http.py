"""HTTP requests that are limited in time and size; every failure is a SourceError."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import urllib3.exceptions

from runbook_lib.model.finding import Reason
from runbook_lib.sources.source import ReadCost, SourceError

#: To be connected, and for each part of the answer; for all of it; and the most of it that is read.
TIMEOUT_S = (2.0, 3.0)
WHOLE_S = 6.0
MOST_BYTES = 16_000_000
_CODES = {404: "not_found"}
#: The settings that TLS with a source goes by.
SETTINGS = {"nats_monitor": "nats_ca_file, nats_cert_file"}


@dataclass(frozen=True)
class HttpServer:
    """One server that is asked over HTTP; `source` is its name in errors and in the read cost.

    Its requests raise SourceError: unreachable, timeout, denied, error. The `code` is "hung" (the connection was
    accepted and no answer came), "no_answer" (it was not accepted in time), "no_connection" (it was refused), "cut_off"
    (it was closed without an answer), "no_host" (the name is not known here), "no_route", "not_found" (the server has
    no such page), or another HTTP status.
    """

    source: str
    url: str
    read_cost: ReadCost
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    #: The trusted CA, where it is not one of this machine's, and our own certificate with its key; files.
    ca_file: Path | None = None
    certificate: tuple[Path, Path] | None = None
    timeout_s: tuple[float, float] = TIMEOUT_S
    whole_s: float = WHOLE_S

    @property
    def behind_proxy(self) -> bool:
        """Whether a proxy of this machine's environment would answer in its place."""
        return requests.utils.select_proxy(self.url, requests.utils.get_environ_proxies(self.url)) is not None

    def get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        """Return the body at `path`."""
        return self._send_request("GET", path, params=params)[1]

    def get_json(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        """Return the JSON at `path`."""
        try:
            return json.loads(self.get(path, params))
        except ValueError:
            raise unexpected_answer(self.source) from None

    def get_status(self, path: str, name: str) -> int:
        """Return the status of the answer at `path`, whatever it is, unread; the query is recorded as `name`."""
        return self._send_request("GET", path, name=name, only_status=True)[0]

    def post_json(self, path: str, content: object, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
        """Post JSON; return the status, whatever it is, and the JSON of the answer (None if it is not JSON)."""
        status, body = self._send_request("POST", path, json=content, headers=headers)
        try:
            return status, json.loads(body)
        except ValueError:
            return status, None

    def _send_request(
        self,
        method: str,
        path: str,
        *,
        name: str = "",
        only_status: bool = False,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> tuple[int, bytes]:
        source, query = self.source, "&".join(f"{k}={v}" for k, v in (more.get("params") or {}).items())
        certificate = self.certificate and (str(self.certificate[0]), str(self.certificate[1]))
        with self.read_cost.query(source, name or path, f"{method} /{path}{'?' + query if query else ''}") as asked:
            try:
                with requests.request(
                    method,
                    f"{self.url.rstrip('/')}/{path}",
                    headers={**self.headers, **(headers or {})},
                    timeout=self.timeout_s,
                    stream=True,
                    allow_redirects=False,
                    verify=str(self.ca_file) if self.ca_file else True,
                    cert=certificate,
                    **more,
                ) as reply:
                    if method == "GET" and not only_status:
                        reply.raise_for_status()
                    if reply.is_redirect and not only_status:
                        raise SourceError(source, Reason.ERROR, f"HTTP {reply.status_code}", "redirect")
                    body = b"" if only_status else _read_body(source, reply, self.whole_s)
            except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as e:
                raise _request_error(source, e) from None
            asked.rows = 1
        return reply.status_code, body


def _request_error(source: str, e: Exception) -> SourceError:
    """Return the SourceError of a failed request."""
    match e:
        case requests.ConnectTimeout():
            return SourceError(source, Reason.TIMEOUT, "no answer to the connection", "no_answer")
        case requests.Timeout() | urllib3.exceptions.ReadTimeoutError():
            return SourceError(source, Reason.TIMEOUT, "no answer in time", "hung")
        case requests.exceptions.SSLError():
            detail = f"no TLS with it: the CA of its certificate, or ours, does not fit ({SETTINGS.get(source, 'CA')})"
            return SourceError(source, Reason.DENIED, detail, "no_tls")
        case requests.ConnectionError():
            return SourceError(source, Reason.UNREACHABLE, *_explain_connection_error(e))
        case requests.HTTPError():
            status = e.response.status_code
            reason = Reason.DENIED if status in (401, 403) else Reason.ERROR
            return SourceError(source, reason, f"HTTP {status}", _CODES.get(status, str(status)))
        case requests.RequestException() | urllib3.exceptions.HTTPError():
            return unexpected_answer(source)
    return SourceError(source, Reason.DENIED, f"TLS: {e}", "no_file")  # of a file for TLS


def _explain_connection_error(e: requests.ConnectionError) -> tuple[str, str]:
    """Return what happened and its code."""
    cause = getattr(e.args[0] if e.args else None, "reason", None)
    if isinstance(cause, urllib3.exceptions.NameResolutionError):
        return "its host name is not known here", "no_host"
    if not isinstance(cause, urllib3.exceptions.NewConnectionError):
        return "the connection was closed without an answer", "cut_off"
    if isinstance(cause.__cause__, ConnectionRefusedError):
        return "connection refused", "no_connection"
    return "there is no way to its address", "no_route"


def unexpected_answer(source: str) -> SourceError:
    """Return the error of an answer that this source does not give."""
    return SourceError(source, Reason.ERROR, "the answer is not what this source gives", "unfit")


def _read_body(source: str, reply: requests.Response, whole_s: float) -> bytes:
    """Read the body, all of it within `whole_s` and MOST_BYTES."""
    until, body = time.monotonic() + whole_s, b""
    while part := reply.raw.read1(65_536, decode_content=True):
        body += part
        if len(body) > MOST_BYTES:
            raise SourceError(source, Reason.ERROR, f"the answer is longer than {MOST_BYTES:,} bytes", "too_long")
        if time.monotonic() > until:
            raise SourceError(source, Reason.TIMEOUT, "the answer did not end in time", "hung")
    return body
