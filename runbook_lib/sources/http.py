"""One bounded GET that turns whatever goes wrong into a SourceError."""

from __future__ import annotations

from typing import Any

import requests

from runbook_lib.model.finding import Reason
from runbook_lib.sources import ReadCost, SourceError

TIMEOUT_S = (2.0, 3.0)


def get_json(source: str, read_cost: ReadCost, url: str, path: str, params: dict[str, str] | None = None) -> Any:
    """The JSON that `url`/`path` answers. Raises SourceError: unreachable, timeout, denied, error."""
    query = "&".join(f"{k}={v}" for k, v in (params or {}).items())
    with read_cost.question(source, path, f"GET /{path}{'?' + query if query else ''}") as asked:
        try:
            reply = requests.get(f"{url.rstrip('/')}/{path}", params=params, timeout=TIMEOUT_S)
            reply.raise_for_status()
            body = reply.json()
        except requests.Timeout:
            raise SourceError(source, Reason.TIMEOUT, "no answer in time", "hung") from None
        except requests.ConnectionError:
            raise SourceError(source, Reason.UNREACHABLE, "connection refused", "no_connection") from None
        except requests.HTTPError as e:
            status = e.response.status_code
            reason = Reason.DENIED if status in (401, 403) else Reason.ERROR
            raise SourceError(source, reason, f"HTTP {status}", str(status)) from None
        except (requests.RequestException, ValueError):
            raise SourceError(source, Reason.ERROR, "the answer is not what this source gives") from None
        asked.rows = 1
    return body
