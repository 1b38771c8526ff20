"""Say why a source did not answer, as several modules of the pack do."""

from __future__ import annotations

from runbook_lib.model.finding import Reason, Text, say
from runbook_lib.sources import SourceError

_ERROR_KEYS = {
    Reason.UNREACHABLE: "unknown.unreachable",
    Reason.TIMEOUT: "unknown.timeout",
    Reason.DENIED: "unknown.denied",
    Reason.NO_DATA: "unknown.no_data",
    Reason.SKIPPED: "unknown.skipped",
    Reason.ERROR: "unknown.error",
    Reason.NOT_RUN: "unknown.not_run",
    Reason.NOT_CONFIGURED: "unknown.not_configured",
}


def explain_error(error: SourceError, detail: str = "") -> Text:
    """Return why a source did not answer; `detail` replaces the error's own, for example once it is masked."""
    return say(_ERROR_KEYS[error.reason], source=error.source, detail=detail or error.detail)
