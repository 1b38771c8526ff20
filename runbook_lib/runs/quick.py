"""Imported before anything else by processes that are to start quickly."""

from __future__ import annotations

import sys

# Optional imports of our dependencies that are not used here.
for unused in (
    "rfc3987_syntax",  # jsonschema: a grammar of international URIs, a second, to check a format that no notebook has
    "isoduration",  # jsonschema: the same of durations
    "debugpy",  # ipykernel: a debugger, half a second and 20 MB in each kernel; JupyterLab's own kernels keep it
    "boto3",  # papermill: the client of a store that is reached through fsspec here
):
    sys.modules.setdefault(unused, None)  # type: ignore[arg-type]
