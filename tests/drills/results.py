"""The file of drill results: a line of JSON per drill; compressed by gzip if its name ends with .gz."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from runbook_lib.model.usage import UsageError
from runbook_lib.store.files import write_whole


def read(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines, [] if there is no file; a power failure may have cut the last one.

    Raises UsageError for a compressed file that is damaged.
    """
    lines: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        content = file.read_bytes()
        if file.suffix == ".gz":
            try:
                content = gzip.decompress(content)
            except (gzip.BadGzipFile, EOFError, zlib.error) as e:
                raise UsageError(f"{file} is no whole gzip file ({e}): restore it, or choose another file") from None
        for text in content.decode().splitlines():
            with suppress(ValueError):
                lines.append(json.loads(text))
    return lines


def write(file: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Replace the file by these lines as a whole; the same lines give the same bytes. Raises OSError."""
    content = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines).encode()
    write_whole(file.absolute(), gzip.compress(content, mtime=0) if file.suffix == ".gz" else content)
