"""What Grafana is given: annotations beside a target's graphs, and links to its dashboards. It is asked nothing."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Literal
from urllib.parse import quote

import pandas as pd

from runbook_lib import messages
from runbook_lib.masking import Masker
from runbook_lib.model.finding import Window, say
from runbook_lib.settings import Target
from runbook_lib.sources import ReadCost, SourceError, http

#: Seconds that it has for all that it is told at once: whoever runs something waits for it.
TELL_S = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotation:
    """A moment, or what lasted until another one, and a sentence in which nobody is named."""

    kind: Literal["onset", "verdict", "action", "recovery"]
    text: str
    at: pd.Timestamp
    until: pd.Timestamp | None = None
    tags: tuple[str, ...] = ()


def link(target: Target, name: str, incident: str, window: Window) -> str:
    """The target's dashboard over a window, `{hop}` left as it is; "" where it has none."""
    values = {"target": name, "incident": incident, "from_ms": str(_ms(window.since)), "to_ms": str(_ms(window.as_of))}
    return re.sub(r"\{(\w+)\}", lambda m: quote(values[m[1]], safe="") if m[1] in values else m[0], target.grafana_link)


def annotate(target: Target, name: str, incident: str, annotations: Sequence[Annotation], lang: str) -> None:
    """Tell Grafana, where the target has one, within `TELL_S`. What fails is one line of the log and raises nothing."""
    if not target.grafana_url or not annotations:
        return
    came: list[str] = []
    telling = Thread(target=lambda: came.append(_tell(target, name, incident, annotations)), daemon=True)
    telling.start()
    telling.join(TELL_S)
    problem = came[0] if came else f"no answer within {TELL_S:.0f} s"
    if problem:
        _log.warning("%s", messages.text(say("ui.not_annotated", incident=incident, problem=problem), lang))


def _tell(target: Target, name: str, incident: str, annotations: Sequence[Annotation]) -> str:
    """Send them; "" or why not, without anything of the URL or the token."""
    token = target.grafana_token.get_secret_value() if target.grafana_token else ""
    cost = ReadCost(Masker())  # the system is asked nothing, so the run's own does not count it
    try:
        for a in annotations:
            tags = ["runbook", a.kind, f"target:{name}", f"incident:{incident}", *a.tags]
            content = {"time": _ms(a.at), "tags": tags, "text": a.text}
            content |= {"timeEnd": _ms(a.until)} if a.until is not None else {}
            headers = {"Authorization": f"Bearer {token}"}
            status, _ = http.post_json(
                "grafana", cost, target.url("grafana_url") or "", "api/annotations", content, headers
            )
            if status != 200:
                return f"HTTP {status}"
    except SourceError as e:
        return e.detail
    except Exception as e:  # whatever it is, its text may hold the token
        return type(e).__name__
    return ""


def _ms(at: pd.Timestamp) -> int:
    return round(at.timestamp() * 1000)
