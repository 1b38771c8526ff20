"""Where artifacts land: one folder per incident, in a local folder or under any fsspec URL.

    <output>/<incident>/<UTC time>-<section>-<status>.ipynb and .html
    <output>/<incident>/evidence/<same name>.json
    <output>/<incident>/manifest.jsonl     one line per artifact, each sealed to the line before
    <output>/<incident>/actions.jsonl      one line per action that was asked for, sealed likewise
    <output>/<incident>/notes.jsonl        one line per responder's note, sealed likewise
    <output>/<incident>/index.html         the dossier
    <output>/<incident>/.salts             what its people's tokens are made with; not sealed, so that it can change

A name with a status is final. A run that died leaves `<time>-<section>.partial.ipynb`.

Whatever a store raises is an OSError here, with one line as its `strerror`; an output that can not be opened at all is
an OutputError.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import random
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import get_native_id
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from runbook_lib.masking import fresh_salts, without
from runbook_lib.model.finding import Text, say
from runbook_lib.usage import UsageError

MANIFEST = "manifest.jsonl"
ACTION_LOG = "actions.jsonl"
NOTES = "notes.jsonl"
SEALED = (MANIFEST, ACTION_LOG, NOTES)
PARTIAL = ".partial.ipynb"
SALTS = ".salts"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: Stores without folders. `makedirs` would make a bucket there, also one whose name is misspelt.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
#: Seconds and tries, so that a store that does not answer is given up within half a minute; FSSPEC_S3 has precedence.
_S3 = {
    "connect_timeout": 3,
    "read_timeout": 8,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}
#: What was opened is never closed: a fork that closed its copy would cut the connections of its parent.
_opened: list[Any] = []


class OutputError(UsageError):
    """The output cannot be written: perhaps the wrong one was named, perhaps it can be later."""


@dataclass(frozen=True)
class Archive:
    """The artifacts of one incident."""

    output: str
    incident: str

    @property
    def local(self) -> Path | None:
        """The incident's folder where the archive is a local one."""
        return Path(self._path("")) if isinstance(self._filesystem, LocalFileSystem) else None

    @property
    def place(self) -> str:
        """The incident's folder as a person would open it."""
        folder = self.local
        return str(folder) if folder else f"{self.output.rstrip('/')}/{self.incident}"

    def prepare(self, *, people: bool = True) -> None:
        """Make the folder and try to write; with `people`, give an incident that begins its salts.

        Raises OutputError, one line, when that fails.
        """
        try:
            if self.local:
                _shared(self.local)
                _shared(self.local / "evidence")
                with tempfile.TemporaryFile(dir=self.local):
                    pass
            else:
                with self._asked("evidence"):
                    if not _BUCKETS & self._protocols:
                        self._filesystem.makedirs(self._path("evidence"), exist_ok=True)
                self.write("evidence/.keep", b"")
            if people:
                self._begin_salts()
        except OSError as e:
            reason = e.strerror or type(e).__name__
            raise OutputError(
                f"output folder {self.place} cannot be written: {reason}; choose another with --output"
            ) from None

    def _begin_salts(self) -> None:
        """Of an incident that has lines and none, the tokens must stay as they are."""
        with self.locked():
            if self._current(SALTS)[0] or any(self.raw(log) for log in SEALED):
                return
            try:
                if self.local or not self._create(SALTS, fresh_salts()):
                    self.write(SALTS, fresh_salts())
            except OSError as e:
                # Another machine has begun them; or the disk is full, and a verdict is worth more than salts.
                if not _is_conflict(e) and e.errno not in _FULL:
                    raise

    def salts(self) -> bytes:
        """What the tokens of this incident's people are made with (`Masker`); b"" where it has none.

        Where the store does not answer: salts that nobody has, because a token must never be easier to lead back.
        """
        try:
            return self._current(SALTS)[0]
        except (OSError, UsageError):
            return fresh_salts()

    def forget(self, user: str) -> None:
        """Make the token of a person follow from nothing any more. Raises OSError, also where there are no salts."""
        with self.locked():
            salts, etag = self._current(SALTS)
            if not salts:
                raise FileNotFoundError(errno.ENOENT, "the incident has no salts", f"{self.place}/{SALTS}")
            self._replace(SALTS, without(salts, user), etag)

    def remove(self) -> None:
        """Take the incident away, its manifest last, so that what is interrupted can be done again. Raises OSError.

        For who holds the lock.
        """
        if folder := self.local:
            if folder.is_symlink():
                raise OSError(errno.ELOOP, "it is a link: remove by hand what it leads to", str(folder))
            for there in folder.iterdir():
                if there.is_dir() and not there.is_symlink():
                    shutil.rmtree(there)
                elif there.name != MANIFEST:
                    there.unlink()
            shutil.rmtree(folder)
        else:
            for name in sorted(self.files(), key=lambda name: name == MANIFEST):
                self._remove(name)

    def reserve(self, stem: str) -> str:
        """A stem that no artifact of this incident has yet, and a partial file that keeps it.

        Where the store can not keep it, or does not answer for now, the stem is one that nobody else thinks of.
        """
        for n in range(1, 1000):
            name = stem if n == 1 else f"{stem}.{n}"
            try:
                if not self._create(f"{name}{PARTIAL}", b""):
                    break
                # Only now: a run of that name that ended meanwhile has left its artifact before it gave up the stem.
                if not any(f.startswith(f"{name}-") and f.endswith(".ipynb") for f in self.names()):
                    return name
                self.release(name)
            except FileExistsError:
                continue
            except OSError:
                break
        else:
            raise UsageError(f"{self.place} holds too many artifacts named {stem}")
        return f"{stem}.{secrets.token_hex(4)}"

    def release(self, stem: str) -> None:
        """Take the partial file of a stem away, if it can be done: the artifact is there, or there is none to come."""
        with suppress(OSError):
            self._remove(f"{stem}{PARTIAL}")
            for half in self.local.glob(f".{stem}{PARTIAL}.*.new") if self.local else ():
                half.unlink(missing_ok=True)  # of a run that was killed while it wrote

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the incident; whole or not at all. Raises OSError."""
        if self.local:
            write_whole(self.local / name, content)
        else:
            with self._asked(name):
                self._filesystem.pipe_file(self._path(name), content)

    def read(self, name: str) -> bytes:
        """A file of the incident. Raises OSError: FileNotFoundError where there is none."""
        with self._asked(name):
            return bytes(self._filesystem.cat_file(self._path(name)))

    def names(self) -> list[str]:
        """The files in the incident's folder that are for people, sorted; [] where there is none. Raises OSError."""
        try:
            with self._asked(""):
                found = self._filesystem.ls(self._path(""), detail=False)
        except FileNotFoundError:
            return []
        names = (str(f).rstrip("/").rsplit("/", 1)[-1] for f in found)
        return sorted(n for n in names if not n.startswith("."))

    def files(self) -> list[str]:
        """Every file of the incident, those in its folders and hidden ones too. Raises OSError."""
        with self._asked(""):
            return [str(f).removeprefix(f"{self._path('')}/") for f in self._filesystem.find(self._path(""))]

    def partials(self) -> list[str]:
        """The artifacts of runs that died, or are still running."""
        return [n for n in self.names() if n.endswith(PARTIAL)]

    def manifest(self) -> list[dict[str, Any]]:
        """The manifest's entries, oldest first."""
        return self.lines(MANIFEST)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The entries of a log (MANIFEST, ACTION_LOG or NOTES), oldest first; [] where there is none."""
        return [json.loads(line) for line in self.raw(name) if line]

    def raw(self, name: str) -> list[bytes]:
        """The lines of a log as they are; [] where there is none. Raises OSError."""
        try:
            return self.read(name).splitlines()
        except FileNotFoundError:
            return []

    def everywhere(self, name: str) -> list[bytes]:
        """The lines of a log, this incident's and of every other under the same output. Raises OSError."""
        filesystem, folder = self._store
        root = folder.rpartition("/")[0]

        def lines(incident: str) -> list[bytes]:
            with suppress(FileNotFoundError, NotADirectoryError), self._asked(name):
                return bytes(filesystem.cat_file(f"{root}/{incident}/{name}")).splitlines()
            return []

        with ThreadPoolExecutor(16) as pool:  # in a store each is a question
            return [line for own in pool.map(lines, Archive(self.output, "").names()) for line in own]

    def append(self, entry: dict[str, Any], files: dict[str, bytes], *, new: bool = False) -> dict[str, Any] | None:
        """Write an artifact's files, then its line in the manifest, sealed to the line before.

        A `job` leaves one artifact per section and one verdict: where that is there already, nothing is left and
        its line comes back. Raises OSError; FileExistsError where the files must be `new` and one is not.
        """
        with self.locked():
            if before := _left(self.manifest(), entry):
                return before
            for name, content in files.items():
                if not (new and self._create(name, content)):
                    self.write(name, content)
            sha256 = {name: digest(content) for name, content in files.items()}
            before = self._add_line(MANIFEST, entry | {"sha256": sha256})
            if before:
                named = {name for e in self.manifest() for name in e.get("sha256", {})}
                for name in files.keys() - named:
                    with suppress(OSError):
                        self._remove(name)
        return before

    def of_job(self, job: str) -> dict[str, dict[str, Any]]:
        """What a job has left so far: lines of the manifest by section, "" for its verdict. Raises OSError."""
        return {e.get("section", ""): e for e in self.manifest() if e.get("job") == job}

    def add_line(self, name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Add a line to a log, sealed to the line before. Raises OSError.

        A `job` leaves one per section: where that is there already, nothing is added and it comes back.
        """
        with self.locked():
            return self._add_line(name, entry)

    def _add_line(self, name: str, entry: dict[str, Any]) -> dict[str, Any] | None:
        """Add a line, or find the one that the entry's job has left.

        In S3 a log is replaced only if it still is what was read, so that no other machine's line is lost.
        """
        added = b""
        for tries in range(1, 21):
            before, etag = self._current(name)
            lines = before.splitlines()
            if added in lines:
                return None  # it was written, and only the answer was lost: no two entries are of the same moment
            if there := _left([json.loads(line) for line in lines], entry):
                return there
            sealed = entry | {"previous": digest(lines[-1]) if lines else None}
            added = json.dumps(sealed, ensure_ascii=False, sort_keys=True).encode()
            content = b"".join([before, added, b"\n"])
            try:
                if etag or before or not self._create(name, content):
                    self._replace(name, content, etag)
                return None
            except OSError as e:
                if not _is_conflict(e):
                    raise
            time.sleep(random.uniform(0, 0.05 * tries))  # noqa: S311 - spreads the writers out
        raise OSError(errno.EBUSY, "others write to it all the time", name)

    def _current(self, name: str) -> tuple[bytes, str]:
        """A log's content and its ETag; b"" where there is none, "" where the store compares none."""
        try:
            etag = ""
            if "s3" in self._protocols:
                with self._asked(name):  # before the content: what is newer than that is not replaced
                    etag = self._filesystem.info(self._path(name))["ETag"]
            return self.read(name), etag
        except FileNotFoundError:
            return b"", ""

    def _replace(self, name: str, content: bytes, etag: str) -> None:
        """Write a file, where the store compares only if it is still the one of that ETag. Raises OSError."""
        if not etag:
            return self.write(name, content)
        with self._asked(name):
            self._filesystem.pipe_file(self._path(name), content, IfMatch=etag)

    def _create(self, name: str, content: bytes) -> bool:
        """Write a file that must not be there yet; False, and nothing done, where the store can not promise that.

        Raises OSError: FileExistsError when it is there.
        """
        if self.local:
            (self.local / name).open("xb").close()
            if content:
                write_whole(self.local / name, content)
            return True
        with self._asked(name):
            try:
                self._filesystem.pipe_file(self._path(name), content, mode="create")
            except (NotImplementedError, TypeError, ValueError):
                return False
        return True

    def _remove(self, name: str) -> None:
        with self._asked(name):
            self._filesystem.rm_file(self._path(name))

    def problems(self) -> list[Text]:
        """What the chain shows: files changed or missing, lines taken out or altered; [] is nothing. Raises OSError."""
        logs = {log: lines for log in SEALED if (lines := self.raw(log))}
        found = [] if logs else [say("seal.none", place=self.place, name=MANIFEST)]
        for log, lines in logs.items():
            for n, line in enumerate(lines):
                entry = entry_of(line)
                if entry is None:
                    found.append(say("seal.not_json", log=log, n=n + 1))
                    continue
                if entry.get("previous") != (digest(lines[n - 1]) if n else None):
                    found.append(say("seal.apart", log=log, n=n + 1, before=n))
                for name, expected in entry.get("sha256", {}).items():
                    try:
                        if digest(self.read(name)) != expected:
                            found.append(say("seal.changed", name=name))
                    except FileNotFoundError:
                        found.append(say("seal.missing", name=name))
        return found

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One writer at a time on this machine; also for who reads files and their lines together.

        A folder is locked itself: whoever may write there may lock it, and nothing is left of it. For a store stands a
        file of this user's, which is taken away again.
        """
        folder = self.local
        named = hashlib.sha256(self._path("").encode()).hexdigest()[:16]
        lock = folder or Path(tempfile.gettempdir()) / f"runbook-{os.getuid()}-{named}.lock"
        while True:
            held = os.open(lock, os.O_RDONLY if folder else os.O_RDONLY | os.O_CREAT, 0o600)
            fcntl.flock(held, fcntl.LOCK_EX)
            if os.fstat(held).st_nlink:
                break
            os.close(held)  # whoever held it has taken it away
        try:
            yield
        finally:
            if not folder:
                lock.unlink(missing_ok=True)
            os.close(held)

    @contextmanager
    def _asked(self, name: str) -> Iterator[None]:
        """Whatever a store raises, be it of its own kind, is an OSError with one line."""
        try:
            yield
        except Exception as e:
            if isinstance(e, OSError) and e.strerror:
                raise
            kinds = (FileNotFoundError, FileExistsError, PermissionError)
            kind = next((k for k in kinds if isinstance(e, k)), OSError)
            text = " ".join(str(e).split()) or type(e).__name__
            number = e.errno if isinstance(e, OSError) and e.errno else errno.EIO
            raise kind(number, text, f"{self.place}/{name}") from e

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """The filesystem and the incident's folder in it; opened when it is needed: it must not cross a fork."""
        protocol = fsspec.utils.get_protocol(self.output)
        options: dict[str, Any] = {} if protocol in LocalFileSystem.protocol else {"use_listings_cache": False}
        if s3 := protocol in {"s3", "s3a"}:
            options["config_kwargs"] = _S3 | fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        try:
            fs, path = fsspec.core.url_to_fs(self.output, **options)
        except ImportError as e:
            hint = ": pip install 'runbook-notebooks[s3]'" if s3 else ""
            raise UsageError(
                f"artifacts under {protocol}:// need a package that is not installed ({e}){hint}"
            ) from None
        except Exception as e:
            raise OutputError(f"output {self.output} cannot be opened: {' '.join(str(e).split())}") from None
        if path.encode(errors="replace").decode() != path:
            raise UsageError(f"output {path!a} has a name that is not UTF-8: choose another with --output")
        if s3:
            fs.retries = 1  # `_S3` has the tries already
        if not any(fs is o for o in _opened):
            _opened.append(fs)
        return fs, f"{path.rstrip('/')}/{self.incident}"

    @property
    def _filesystem(self) -> Any:
        return self._store[0]

    @property
    def _protocols(self) -> set[str]:
        protocol = self._filesystem.protocol
        return {protocol} if isinstance(protocol, str) else set(protocol)

    def _path(self, name: str) -> str:
        return f"{self._store[1]}/{name}".rstrip("/")


def _shared(folder: Path) -> None:
    """Make a folder, as open to its group as the one it lies in, so that two people may write to one incident."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        around = folder.parent.stat()
        if around.st_mode & stat.S_ISGID:
            folder.chmod(folder.stat().st_mode | around.st_mode & (stat.S_ISGID | stat.S_IRWXG))


def entry_of(line: bytes) -> dict[str, Any] | None:
    """What a line of a log says; None where no writer of ours has written it."""
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    fit = isinstance(entry, dict) and isinstance(entry.get("sha256", {}), dict)
    return entry if fit else None


def _left(manifest: list[dict[str, Any]], entry: dict[str, Any]) -> dict[str, Any] | None:
    """The line that the job of `entry` has left for the same section; None for what has no job."""
    same = (entry.get("job"), entry.get("section"))
    return next((e for e in manifest if entry.get("job") and (e.get("job"), e.get("section")) == same), None)


def _is_conflict(e: OSError) -> bool:
    """Whether a file was not written because another machine has written it meanwhile."""
    answer = getattr(e.__cause__, "response", None) or {}
    code = answer.get("Error", {}).get("Code")
    return isinstance(e, FileExistsError) or code in {"PreconditionFailed", "ConditionalRequestConflict"}


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it sees the old or the new content, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{get_native_id()}.new")
    try:
        new.write_bytes(content)
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
