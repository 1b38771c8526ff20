"""Imported before anything else by processes that are to start quickly."""

from __future__ import annotations

import sys

# jsonschema imports a grammar of international URIs where JupyterLab has brought one: a second for each process, to
# check a format that no notebook has.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
