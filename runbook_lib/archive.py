"""Where artifacts land: one folder per incident, in a local folder or under any fsspec URL.

    <output>/<incident>/<UTC time>-<section>-<status>.ipynb and .html
    <output>/<incident>/evidence/<same name>.json
    <output>/<incident>/manifest.jsonl     one line per artifact, each sealed to the line before
    <output>/<incident>/actions.jsonl      one line per action that was asked for, sealed likewise
    <output>/<incident>/notes.jsonl        one line per responder's note, sealed likewise
    <output>/<incident>/index.html         the dossier

A name with a status is final. A run that died leaves `<time>-<section>.partial.ipynb`.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from runbook_lib.engine import write_whole
from runbook_lib.settings import UsageError

MANIFEST = "manifest.jsonl"
ACTIONS = "actions.jsonl"
NOTES = "notes.jsonl"
JOURNALS = (MANIFEST, ACTIONS, NOTES)
PARTIAL = ".partial.ipynb"


@dataclass(frozen=True)
class Archive:
    """The artifacts of one incident."""

    output: str
    incident: str

    def __post_init__(self) -> None:
        fs, path = fsspec.core.url_to_fs(self.output)
        object.__setattr__(self, "_fs", fs)
        object.__setattr__(self, "_root", f"{path.rstrip('/')}/{self.incident}")

    @property
    def local(self) -> Path | None:
        """The incident's folder where the archive is a local one."""
        return Path(self._path("")) if isinstance(self._filesystem, LocalFileSystem) else None

    @property
    def place(self) -> str:
        """The incident's folder as a person would open it."""
        folder = self.local
        return str(folder) if folder else f"{self.output.rstrip('/')}/{self.incident}"

    def prepare(self) -> None:
        """Make the folder and try to write. Raises UsageError, one line, when that fails."""
        try:
            if self.local:
                (self.local / "evidence").mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.local):
                    pass
            else:
                self._filesystem.makedirs(self._path("evidence"), exist_ok=True)
        except OSError as e:
            reason = e.strerror or type(e).__name__
            raise UsageError(
                f"output folder {self.place} cannot be written: {reason}; choose another with --output"
            ) from None

    def reserve(self, stem: str) -> str:
        """A stem that no artifact of this incident has yet, and a partial file that keeps it."""
        for n in range(1, 1000):
            name = stem if n == 1 else f"{stem}.{n}"
            if self.local is None:
                return name
            taken = any(self.local.glob(f"{name}-*.ipynb"))
            try:
                if not taken:
                    (self.local / f"{name}{PARTIAL}").open("x").close()
                    return name
            except FileExistsError:
                continue
        raise UsageError(f"{self.place} holds too many artifacts named {stem}")

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the incident; whole or not at all. Raises OSError."""
        if self.local:
            write_whole(self.local / name, content)
        else:
            self._filesystem.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes:
        """A file of the incident. Raises FileNotFoundError."""
        return bytes(self._filesystem.cat_file(self._path(name)))

    def names(self) -> list[str]:
        """The files in the incident's folder, sorted; [] where there is none."""
        try:
            found = self._filesystem.ls(self._path(""), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(f).rstrip("/").rsplit("/", 1)[-1] for f in found)

    def partials(self) -> list[str]:
        """The artifacts of runs that died, or are still running."""
        return [n for n in self.names() if n.endswith(PARTIAL) and not n.startswith(".")]

    def manifest(self) -> list[dict[str, Any]]:
        """The manifest's entries, oldest first."""
        return self.lines(MANIFEST)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The entries of a journal (MANIFEST, ACTIONS or NOTES), oldest first; [] where there is none."""
        try:
            text = self.read(name).decode()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines() if line]

    def append(self, entry: dict[str, Any], files: dict[str, bytes]) -> dict[str, Any] | None:
        """Write an artifact's files, then its line in the manifest, sealed to the line before.

        A `job` leaves one artifact per section and one verdict: where that is there already, nothing is written and
        its line comes back. Raises OSError.
        """
        with self._locked():
            if entry.get("job") and (before := self.of_job(entry["job"]).get(entry.get("section", ""))):
                return before
            for name, content in files.items():
                self.write(name, content)
            sha256 = {name: digest(content) for name, content in files.items()}
            self._add_line(MANIFEST, entry | {"sha256": sha256})
        return None

    def of_job(self, job: str) -> dict[str, dict[str, Any]]:
        """What a job has left so far: lines of the manifest by section, "" for its verdict."""
        return {e.get("section", ""): e for e in self.manifest() if e.get("job") == job}

    def add_line(self, name: str, entry: dict[str, Any]) -> None:
        """Add a line to a journal, sealed to the line before. Raises OSError."""
        with self._locked():
            self._add_line(name, entry)

    def _add_line(self, name: str, entry: dict[str, Any]) -> None:
        try:
            before = self.read(name)
        except FileNotFoundError:
            before = b""
        lines = before.splitlines()
        sealed = entry | {"previous": digest(lines[-1]) if lines else None}
        line = json.dumps(sealed, ensure_ascii=False, sort_keys=True).encode()
        self.write(name, b"".join([before, line, b"\n"]))

    def problems(self) -> list[str]:
        """What the seal finds: files changed or missing, lines taken out or altered. [] is whole."""
        found: list[str] = []
        present = [j for j in JOURNALS if j in self.names()]
        if not present:
            return [f"{self.place} has no {MANIFEST}"]
        for journal in present:
            lines = self.read(journal).splitlines()
            for n, line in enumerate(lines):
                try:
                    entry = json.loads(line)
                except ValueError:
                    found.append(f"{journal} line {n + 1} is not JSON")
                    continue
                if entry["previous"] != (digest(lines[n - 1]) if n else None):
                    found.append(f"{journal} line {n + 1} does not follow line {n}: a line was changed or taken out")
                for name, expected in entry.get("sha256", {}).items():
                    try:
                        if digest(self.read(name)) != expected:
                            found.append(f"{name} was changed after it was sealed")
                    except FileNotFoundError:
                        found.append(f"{name} is missing")
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time on this machine."""
        lock = hashlib.sha256(self._path("").encode()).hexdigest()[:16]
        with (Path(tempfile.gettempdir()) / f"runbook-{lock}.lock").open("a") as f:
            fcntl.flock(f, fcntl.LOCK_EX)
            yield

    @property
    def _filesystem(self) -> Any:
        return self.__dict__["_fs"]

    def _path(self, name: str) -> str:
        return f"{self.__dict__['_root']}/{name}".rstrip("/")


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()
