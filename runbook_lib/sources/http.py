"""HTTP requests that are limited in time and size; every failure is a SourceError."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3.exceptions

from runbook_lib.model.finding import Reason
from runbook_lib.sources import ReadCost, SourceError

#: To be connected, and for each part of the answer; for all of it; and the most of it that is read.
TIMEOUT_S = (2.0, 3.0)
WHOLE_S = 6.0
MOST_BYTES = 16_000_000
_CODES = {404: "not_found"}
#: The settings that TLS with a source goes by.
SETTINGS = {"nats_monitor": "nats_ca_file, nats_cert_file"}


@dataclass(frozen=True)
class Trust:
    """Which CA is trusted, where it is not one of this machine's, and our own certificate with its key; files."""

    authority: Path | None = None
    certificate: tuple[Path, Path] | None = None

    def options(self) -> dict[str, Any]:
        """Return the options for `requests`."""
        own = self.certificate and tuple(map(str, self.certificate))
        return {"verify": str(self.authority) if self.authority else True, "cert": own}


def get_json(
    source: str,
    read_cost: ReadCost,
    url: str,
    path: str,
    params: dict[str, str] | None = None,
    trust: Trust | None = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """Return the JSON at `url`/`path`. Raises SourceError: unreachable, timeout, denied, error."""
    body = get(source, read_cost, url, path, params, trust, headers)
    try:
        return json.loads(body)
    except ValueError:
        raise unexpected_answer(source) from None


def get(
    source: str,
    read_cost: ReadCost,
    url: str,
    path: str,
    params: dict[str, str] | None = None,
    trust: Trust | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    """Return the body at `url`/`path`. Raises SourceError: unreachable, timeout, denied, error.

    Its `code` is "hung" (the connection was accepted and no answer came), "no_answer" (it was not accepted in time),
    "no_connection" (it was refused), "cut_off" (it was closed without an answer), "no_host" (the name is not known
    here), "no_route", "not_found" (the server has no such page), or another HTTP status.
    """
    return _request("GET", source, read_cost, url, path, trust, params=params, headers=headers)[1]


def get_status(source: str, read_cost: ReadCost, url: str, name: str) -> int:
    """Return the status of the answer at `url`, whatever it is, without its body; the query is recorded as `name`.

    Raises SourceError as `get` does, but for a status.
    """
    base = "{0.scheme}://{0.netloc}".format(urlsplit(url))
    path = url.removeprefix(base).lstrip("/")
    return _request("GET", source, read_cost, base, path, name=name, only_status=True)[0]


def post_json(
    source: str, read_cost: ReadCost, url: str, path: str, content: object, headers: dict[str, str]
) -> tuple[int, Any]:
    """Post JSON; return the status and the JSON of the answer (None if it is not JSON), whatever the status.

    Raises SourceError as `get` does, but for a status.
    """
    status, body = _request("POST", source, read_cost, url, path, json=content, headers=headers)
    try:
        return status, json.loads(body)
    except ValueError:
        return status, None


def _request(
    method: str,
    source: str,
    read_cost: ReadCost,
    url: str,
    path: str,
    trust: Trust | None = None,
    *,
    name: str = "",
    only_status: bool = False,
    **more: Any,
) -> tuple[int, bytes]:
    query = "&".join(f"{k}={v}" for k, v in (more.get("params") or {}).items())
    with read_cost.query(source, name or path, f"{method} /{path}{'?' + query if query else ''}") as asked:
        try:
            with requests.request(
                method,
                f"{url.rstrip('/')}/{path}",
                timeout=TIMEOUT_S,
                stream=True,
                allow_redirects=False,
                **(trust or Trust()).options(),
                **more,
            ) as reply:
                if method == "GET" and not only_status:
                    reply.raise_for_status()
                if reply.is_redirect and not only_status:
                    raise SourceError(source, Reason.ERROR, f"HTTP {reply.status_code}", "redirect")
                body = b"" if only_status else _read_body(source, reply)
        except requests.ConnectTimeout:
            raise SourceError(source, Reason.TIMEOUT, "no answer to the connection", "no_answer") from None
        except (requests.Timeout, urllib3.exceptions.ReadTimeoutError):
            raise SourceError(source, Reason.TIMEOUT, "no answer in time", "hung") from None
        except requests.exceptions.SSLError:
            detail = f"no TLS with it: the CA of its certificate, or ours, does not fit ({SETTINGS.get(source, 'CA')})"
            raise SourceError(source, Reason.DENIED, detail, "no_tls") from None
        except requests.ConnectionError as e:
            raise SourceError(source, Reason.UNREACHABLE, *_explain_connection_error(e)) from None
        except requests.HTTPError as e:
            status = e.response.status_code
            reason = Reason.DENIED if status in (401, 403) else Reason.ERROR
            raise SourceError(source, reason, f"HTTP {status}", _CODES.get(status, str(status))) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError):
            raise unexpected_answer(source) from None
        except OSError as e:  # of a file that `trust` names
            raise SourceError(source, Reason.DENIED, f"TLS: {e}", "no_file") from None
        asked.rows = 1
    return reply.status_code, body


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
    """Something answered, and not as this source does."""
    return SourceError(source, Reason.ERROR, "the answer is not what this source gives", "unfit")


def _read_body(source: str, reply: requests.Response) -> bytes:
    """Read the body within limits: each part within TIMEOUT_S, all of it within WHOLE_S and MOST_BYTES."""
    until, body = time.monotonic() + WHOLE_S, b""
    while part := reply.raw.read1(65_536, decode_content=True):
        body += part
        if len(body) > MOST_BYTES:
            raise SourceError(source, Reason.ERROR, f"the answer is longer than {MOST_BYTES:,} bytes", "too_long")
        if time.monotonic() > until:
            raise SourceError(source, Reason.TIMEOUT, "the answer did not end in time", "hung")
    return body
