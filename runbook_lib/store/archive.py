"""The archive of artifacts: one folder per incident, in a local folder or under any fsspec URL.

    <output>/<incident>/<UTC time>-<section>-<status>.ipynb and .html
    <output>/<incident>/evidence/<same name>.json
    <output>/<incident>/log.jsonl          runs, verdicts, actions, notes; each line has the digest of the one before
    <output>/<incident>/index.html         the index page
    <output>/<incident>/.salt              the salt of the user ids' tokens; not sealed, because `forget` deletes it

A file name with a status is final. A run that died leaves `<time>-<section>.partial.ipynb`.

Folders have mode 0700 and files 0600, whatever the umask. Where the output has the setgid bit, its group may read and
write as well; an incident's folder that has other permissions gives them to what is written into it.

Every exception of a store becomes an OSError with one line as its `strerror`; an output that cannot be opened at all
raises OutputError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import fsspec
from fsspec import asyn
from fsspec.implementations.local import LocalFileSystem

from runbook_lib.model.finding import Text, say
from runbook_lib.model.incident import ADHOC, is_reserved
from runbook_lib.model.usage import UsageError, install_command
from runbook_lib.privacy.masking import new_salt
from runbook_lib.privacy.urls import show_url, show_urls
from runbook_lib.store.files import create_whole, digest, file_mode, make_folder, open_locked, read_regular, write_whole

LOG = "log.jsonl"
Kind: TypeAlias = Literal["run", "verdict", "action", "note"]
#: The kinds of its lines; those of the first two name the files of an artifact.
RUN: Kind = "run"
VERDICT: Kind = "verdict"
ACTION: Kind = "action"
NOTE: Kind = "note"
KINDS = (RUN, VERDICT, ACTION, NOTE)
#: The logs of a dossier of version 0.6.
_EARLIER = ("manifest.jsonl", "actions.jsonl", "notes.jsonl")
PARTIAL = ".partial.ipynb"
#: What `problems` says of a file that could not be read.
UNREAD = "seal.unread"
SALT = ".salt"
#: Its name in version 0.6.
_EARLIER_SALT = ".salts"
#: Valid names of files in a log line, and their maximum length in bytes.
_NAME = re.compile(r"(?:evidence/)?[^/.][^/]*")
_MAX_NAME_BYTES = 200
WRITTEN_EARLIER = "was written by version 0.6, which reads and verifies it (pip install runbook-notebooks==0.6.0)"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Errors of a path that is no regular file, or leads to none.
_NO_FILE = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENXIO)

T = TypeVar("T")
R = TypeVar("R")
#: The entries of a log, oldest first.
Entries = list[dict[str, Any]]

#: The names that stores have for the time of a file's last change.
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created")
#: Stores without folders: `makedirs` would create a bucket there, also one with a misspelt name.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}
#: Timeouts in seconds and attempts, so that an unreachable store fails within 30 s; FSSPEC_S3 has precedence.
_S3 = {
    "connect_timeout": 3,
    "read_timeout": 8,
    "retries": {"mode": "standard", "total_max_attempts": 3},
}
#: Seconds in which a store must have answered a read; and when reads have waited for so long in vain.
READ_S, LEAST_S = 60.0, 1.0
#: What is read at once from a store, which takes tens of milliseconds for each file.
_AT_ONCE = 10
#: Opened stores are never closed: a forked process that closed its copy would break its parent's connections.
_opened: list[Any] = []
#: Salts that this process uses although they could not be stored yet, by output and incident.
_unstored: dict[tuple[str, str], bytes] = {}


class OutputError(UsageError):
    """The output cannot be written: its store failed or refused, as an OSError of a read says."""

    exit_code = 69


class LogError(OSError, ValueError):
    """A log has a line that this version did not write."""


class NotSealedError(ValueError):
    """A file is missing, or is not as it was sealed."""


@dataclass
class Patience:
    """How long reads wait for a store: `seconds` together, until one is answered again; then LEAST_S each."""

    seconds: float
    waited: float = 0.0
    """Since the last answer."""


@dataclass(frozen=True)
class Archive:
    """The artifacts of one incident."""

    output: str
    incident: str
    people: bool = True
    """Whether its files may hold tokens of users: then it gets a salt before its first line."""
    patience: Patience | None = field(default=None, compare=False, repr=False)
    """The wait that its reads have in common with those of other archives; None: each read waits by itself."""

    def patient(self, seconds: float | None = None) -> Archive:
        """Return the archive for many reads, which wait for `seconds` (READ_S) together if none is answered."""
        return replace(self, patience=Patience(READ_S if seconds is None else seconds))

    @property
    def local(self) -> Path | None:
        """Return the incident's folder; None if the archive is not local."""
        return Path(self._path("")) if isinstance(self._filesystem, LocalFileSystem) else None

    @property
    def place(self) -> str:
        """Return the incident's folder or URL as text for people."""
        folder = self.local
        return str(folder) if folder else f"{show_url(self.output.rstrip('/'))}/{self.incident}"

    def prepare(self) -> None:
        """Make the folder, test that it is writable, and create the salt of a new incident.

        On a full disk the run goes on, and the salt is stored with its first line. Raises OutputError, one line, if
        anything else fails, or if version 0.6 began the incident: its pages stay as they are.
        """
        try:
            if self.is_earlier():
                raise OutputError(f"{self.place}: {WRITTEN_EARLIER}; choose another incident")
            self.make()
            if self.people:
                self._create_salt()
        except OSError as e:
            reason = e.strerror or type(e).__name__
            raise OutputError(
                f"output folder {self.place} cannot be written: {reason}; choose another with --output"
            ) from None

    def make(self) -> None:
        """Make the folder and test that it is writable. Raises OSError and UsageError."""
        if self.local:
            make_folder(self.local)
            make_folder(self.local / "evidence", stat.S_IMODE(self.local.stat().st_mode))
            with tempfile.TemporaryFile(dir=self.local):
                pass
        else:
            with self._store_errors("evidence"):
                if not _BUCKETS & self._protocols:
                    self._filesystem.makedirs(self._path("evidence"), exist_ok=True)
            self.write("evidence/.keep", b"")

    def _create_salt(self) -> None:
        """Store the salt of a new incident; on a full disk its first line does it. Raises OSError."""
        try:
            with self.locked():
                self._ensure_salt()
        except OSError as e:
            if e.errno not in _FULL:
                raise

    def _ensure_salt(self) -> bytes:
        """Return the salt; store one if it is missing or empty. The caller must hold the lock. Raises OSError."""
        salt = self.read_or_none(SALT)
        if not salt:
            missing = salt is None
            salt = _unstored.setdefault((self.output, self.incident), new_salt())
            try:
                if self.local or not missing or not self._create_file(SALT, salt):
                    self.write(SALT, salt)
            except OSError as e:
                if not _is_conflict(e):
                    raise
                salt = self.read(SALT)  # another machine has created it
        _unstored.pop((self.output, self.incident), None)
        return salt

    def salt(self) -> bytes:
        """Return the salt for the tokens of user ids (`Masker`), stored for a new incident.

        If it cannot be read or stored, returns a random salt: a token must never be easier to trace than with the real
        one. The caller must not hold the lock.
        """
        try:
            if salt := self.read_or_none(SALT):
                return salt
            with self.locked():
                return self._ensure_salt()
        except (OSError, UsageError):
            return _unstored.setdefault((self.output, self.incident), new_salt())

    def forget(self) -> bool:
        """Delete the salt, so that no token can be derived from a user id; return whether there was one.

        Raises OSError.
        """
        with self.locked():
            salts = [name for name in (SALT, _EARLIER_SALT) if self.read_or_none(name) is not None]
            for name in salts:
                self._remove_file(name)
        return bool(salts)

    def reserve(self, stem: str) -> str:
        """Reserve an unused stem for an artifact by creating its partial file, and return the stem.

        If the store cannot create it exclusively, or is not reachable now, the stem has a random suffix.
        """
        for n in range(1, 1000):
            name = stem if n == 1 else f"{stem}.{n}"
            try:
                if not self._create_file(f"{name}{PARTIAL}", b""):
                    break
                # Checked after the creation: a run that used this stem leaves its artifact before it releases the stem.
                if not any(f.startswith(f"{name}-") and f.endswith(".ipynb") for f in self.names()):
                    return name
                self.release(name)
            except FileExistsError:
                continue
            except OSError:
                break
        else:
            raise UsageError(f"{self.place} has too many artifacts named {stem}")
        return f"{stem}.{secrets.token_hex(4)}"

    def release(self, stem: str) -> None:
        """Remove the partial file of a stem, if possible: the run has ended, with or without an artifact."""
        with suppress(OSError):
            self._remove_file(f"{stem}{PARTIAL}")
            for half in self.local.glob(f".{stem}{PARTIAL}.*.new") if self.local else ():
                half.unlink(missing_ok=True)  # of a run that was killed during a write

    def write(self, name: str, content: bytes) -> None:
        """Write a file of the incident atomically. Raises OSError."""
        if self.local:
            write_whole(self.local / name, content, mode=file_mode(self.local))
        else:
            with self._store_errors(name):
                self._filesystem.pipe_file(self._path(name), content)

    def write_new(self, name: str, content: bytes) -> str:
        """Write a file that replaces none, and return its name: `name`, or with a number in it. Raises OSError."""
        stem, _, ending = name.rpartition(".")
        with self.locked():
            taken = {*self.names()}
            name = next(n for i in count(1) if (n := name if i == 1 else f"{stem}-{i}.{ending}") not in taken)
            if not self._create_file(name, content):
                self.write(name, content)
        return name

    def read(self, name: str) -> bytes:
        """Return a file of the incident. Raises OSError; FileNotFoundError if it does not exist."""
        with self._store_errors(name):
            if folder := self.local:
                return read_regular(folder / name)
            return bytes(self._ask("cat_file", self._path(name)))

    def read_sealed(self, sha256: Mapping[str, str], name: str) -> bytes:
        """Return a file that matches its digest, of those of a line. Raises OSError and NotSealedError."""
        expected = sha256.get(name)
        if expected is None or (content := self.read_file(name)) is None or digest(content) != expected:
            raise NotSealedError(f"{name} is missing or changed: run `runbook verify`")
        return content

    def names(self) -> list[str]:
        """Return the visible names in the incident's folder, sorted; [] if there is no folder. Raises OSError."""
        try:
            with self._store_errors(""):
                found = self._ask("ls", self._path(""), detail=False)
        except FileNotFoundError:
            return []
        names = (str(f).rstrip("/").rsplit("/", 1)[-1] for f in found)
        return sorted(n for n in names if not n.startswith("."))

    def newest(self, count: int) -> list[str]:
        """Return the incidents of an output with the newest logs, oldest first. Raises OSError.

        `self` is the output: an archive without an incident's name. Of an incident that may not be read, the time of
        its folder counts.
        """
        written = dict.fromkeys(self.names(), "")
        with self._store_errors(""):
            if folder := self.local:
                written |= {n: _time_of(folder / n / LOG) for n in written}
            else:
                for path, about in self._ask("find", self._path(""), detail=True).items():
                    name, _, file = str(path).removeprefix(f"{self._path('')}/").partition("/")
                    if name in written and file == LOG:
                        written[name] = str(next((about[k] for k in _TIMES if about.get(k)), ""))
        return sorted(written, key=lambda n: (written[n], n))[-count:]

    def may_be_dossier(self) -> bool:
        """Return whether the folder has a log, a run that died or a responder's copies, or may not be read."""
        try:
            names = self.names()
        except NotADirectoryError:
            return False
        except OSError:
            return True
        return bool({LOG, *_EARLIER, "lab"} & {*names}) or any(n.endswith(PARTIAL) for n in names)

    def is_earlier(self) -> bool:
        """Return whether version 0.6 wrote this dossier or ledger, and no later one. Raises OSError."""
        names = {*self.names()}
        return LOG not in names and bool(names & {*_EARLIER})

    def _refuse_earlier(self) -> None:
        if self.is_earlier():
            raise LogError(errno.EBADMSG, WRITTEN_EARLIER, self.place)

    def partials(self) -> list[str]:
        """Return the partial artifacts of runs that died or are still running."""
        return [n for n in self.names() if n.endswith(PARTIAL)]

    def artifacts(self) -> Entries:
        """Return the entries of runs and verdicts, oldest first."""
        return self.lines(RUN, VERDICT)

    def targets(self) -> set[str]:
        """Return the targets of its runs and actions. Raises OSError and ValueError."""
        parameters = (e.get("parameters") for e in self.artifacts())
        given = [*(p for p in parameters if isinstance(p, dict)), *self.lines(ACTION)]
        return {str(values["target"]) for values in given if values.get("target")}

    def lines(self, *kinds: Kind) -> Entries:
        """Return the log's entries of these kinds or of all, oldest first; [] if there is no log.

        Raises OSError; LogError for an invalid line of any kind, and for a dossier of version 0.6.
        """
        return [entry for entry in self._parse(self.raw()) if entry["kind"] in (kinds or KINDS)]

    def _parse(self, lines: Iterable[bytes]) -> Entries:
        entries = []
        for n, line in enumerate(lines, 1):
            if not line:
                continue
            if (entry := entry_of(line)) is None:
                wrong = f"line {n} is not a valid log entry: run `runbook verify`"
                raise LogError(errno.EBADMSG, wrong, f"{self.place}/{LOG}")
            entries.append(entry)
        return entries

    def raw(self) -> list[bytes]:
        """Return the raw lines of the log; [] if there is no log.

        Raises OSError; LogError for a dossier of version 0.6.
        """
        lines = split_lines(self.read_or_none(LOG))
        if not lines:
            self._refuse_earlier()
        return lines

    def read_or_none(self, name: str) -> bytes | None:
        """Return a file's content; None if there is no file. Raises OSError."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def read_file(self, name: str) -> bytes | None:
        """Return a file's content; None for what is no file, or leads to none. Raises OSError."""
        try:
            return self.read(name)
        except OSError as e:
            if isinstance(e, FileNotFoundError) or e.errno in _NO_FILE:
                return None
            raise

    def read_each(self, read: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Iterate over what `read` returns for each item, in their order; of a store several are read at once."""
        if self.local:
            yield from map(read, items)
            return
        rest = iter(items)
        with ThreadPoolExecutor(_AT_ONCE) as lanes:
            while batch := [*islice(rest, _AT_ONCE)]:
                yield from lanes.map(read, batch)

    def append(self, entry: dict[str, Any], files: dict[str, bytes], *, new: bool = False) -> dict[str, Any] | None:
        """Write an artifact's files, then its hash-chained line in the log; return None.

        A `job` has one artifact per section and one verdict: if it exists already, nothing is written and its line is
        returned. Raises OSError; FileExistsError if the files must be `new` and one exists.
        """
        kind = VERDICT if "verdict" in entry else RUN
        with self.locked():
            if before := _find_of_job(entry, _of_kind(self.raw(), kind)):
                return before
            sha256 = {name: digest(content) for name, content in files.items()}
            try:
                for name, content in files.items():
                    if not (new and self._create_file(name, content)):
                        self.write(name, content)
                before = self._add_line(kind, entry | {"sha256": sha256})
            except FileExistsError:  # another's
                raise
            except OSError:
                self._remove_unnamed(files)
                raise
            if before:
                self._remove_unnamed(files)
        return before

    def _remove_unnamed(self, names: Iterable[str]) -> None:
        """Remove those files that no line of the log names: a line may be there although its write failed."""
        with suppress(OSError):
            named = {name for e in self.artifacts() for name in e.get("sha256", {})}
            for name in {*names} - named:
                with suppress(OSError):
                    self._remove_file(name)

    def of_job(self, job: str) -> dict[str, dict[str, Any]]:
        """Return the lines of a job's runs by section, "" for its verdict. Raises OSError."""
        return {e.get("section", ""): e for e in self.artifacts() if e.get("job") == job}

    def add_line(
        self, kind: Kind, entry: dict[str, Any], stops: Callable[[Entries], dict[str, Any] | None] | None = None
    ) -> dict[str, Any] | None:
        """Add a hash-chained line of a kind to the log; return None. Raises OSError.

        A `job` has one line of a kind per section: if it exists already, nothing is added and that line is returned.
        `stops` replaces this check: it gets all entries of the log at the moment of the write, and what it returns
        stops the write; LogError then if a line of the log is not valid, and always for a dossier of version 0.6.
        """
        with self.locked():
            return self._add_line(kind, entry, stops)

    def _add_line(
        self, kind: Kind, entry: dict[str, Any], stops: Callable[[Entries], dict[str, Any] | None] | None = None
    ) -> dict[str, Any] | None:
        """Add a line, or return what stops it: by default an existing line of the entry's job.

        In S3 a log is replaced only if it is unchanged since it was read, so that no other machine's line is lost. An
        incident has its salt before its first line.
        """
        added = None
        for tries in range(1, 21):
            before, etag = self._read_with_etag(LOG)
            lines = split_lines(before)
            if not lines:
                self._refuse_earlier()
                if self.people:
                    self._ensure_salt()
            if added in lines:
                return None  # it was written and only the answer was lost: times make entries unique
            if there := stops(self._parse(lines)) if stops else _find_of_job(entry, _of_kind(lines, kind)):
                return there
            added = _encode_line(entry | {"kind": kind, "previous": digest(lines[-1]) if lines else None})
            content = b"".join(line + b"\n" for line in (*lines, added))
            try:
                if before is not None or not self._create_file(LOG, content):
                    self._replace_file(LOG, content, etag)
                return None
            except OSError as e:
                if not _is_conflict(e):
                    raise
            time.sleep(random.uniform(0, 0.05 * tries))  # noqa: S311 - spreads out the writers
        raise OSError(errno.EBUSY, "too many concurrent writers", LOG)

    def _read_with_etag(self, name: str) -> tuple[bytes | None, str]:
        """Return a log's content (None if there is none) and its ETag ("" if the store has no conditional writes)."""
        etag = ""
        if "s3" in self._protocols:
            try:
                with self._store_errors(name):  # before the content, so that a newer version is never replaced
                    etag = self._ask("info", self._path(name))["ETag"]
            except FileNotFoundError:
                return None, ""
        return self.read_or_none(name), etag

    def _replace_file(self, name: str, content: bytes, etag: str) -> None:
        """Replace a file, with an ETag only if the file still has it. Raises OSError."""
        if not etag:
            return self.write(name, content)
        with self._store_errors(name):
            self._filesystem.pipe_file(self._path(name), content, IfMatch=etag)

    def _create_file(self, name: str, content: bytes) -> bool:
        """Create a file exclusively; return False, and write nothing, if the store does not support that.

        Raises OSError; FileExistsError if the file exists.
        """
        if self.local:
            create_whole(self.local / name, content, file_mode(self.local))
            return True
        with self._store_errors(name):
            try:
                self._filesystem.pipe_file(self._path(name), content, mode="create")
            except (NotImplementedError, TypeError, ValueError):
                return False
        return True

    def _remove_file(self, name: str) -> None:
        with self._store_errors(name):
            self._filesystem.rm_file(self._path(name))

    def problems(self) -> list[Text]:
        """Verify the hash chain; return changed or missing files and changed or removed lines.

        A file that cannot be read is among them, as UNREAD. Raises OSError for the log.
        """
        content = self.read_file(LOG)
        if not content:
            return [say("seal.none", place=self.place, name=LOG)]
        found, own = list[Text](), split_lines(content)
        lines = [(n, line, digest(own[n - 2]) if n > 1 else None) for n, line in enumerate(own, 1)]
        for problems in self.read_each(lambda line: [*self._find_line_problems(*line)], lines):
            found += problems
        if not content.endswith(b"\n"):
            found.append(say("seal.cut_off", n=len(own)))
        return found

    def _find_line_problems(self, n: int, line: bytes, previous: str | None) -> Iterator[Text]:
        """Return the problems of line `n` (from 1) of the log, and of the files that it names."""
        entry = entry_of(line)
        if entry is None:
            yield say("seal.not_json", n=n)
            return
        if "previous" not in entry or entry["previous"] != previous:
            yield say("seal.apart", n=n, before=n - 1)
        if not _is_own_form(entry, line):
            yield say("seal.other_form", n=n)
        if entry.get("kind") in (RUN, VERDICT) and not entry.get("sha256"):
            yield say("seal.no_files", n=n)
        for name, expected in entry.get("sha256", {}).items():
            try:
                content = self.read_file(name)
            except OSError as e:
                yield say(UNREAD, name=name, detail=e.strerror or type(e).__name__)
                continue
            if content is None:
                yield say("seal.missing", name=name)
            elif digest(content) != expected:
                yield say("seal.changed", name=name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the incident on this machine, for writers and for readers who need files and lines to match.

        A local folder is locked itself: every user who may write there can lock it, and no file is left. For a store
        the lock is a temporary file of this user, which is removed afterwards. Raises OSError, also if its holder
        does nothing for LOCK_S.
        """
        folder = self.local
        named = hashlib.sha256(self._path("").encode()).hexdigest()[:16]
        lock = folder or Path(tempfile.gettempdir()) / f"runbook-{os.getuid()}-{named}.lock"
        held = open_locked(lock, os.O_DIRECTORY if folder else os.O_CREAT | os.O_NOFOLLOW)
        try:
            yield
        finally:
            if not folder:
                lock.unlink(missing_ok=True)
            os.close(held)

    def _ask(self, method: str, path: str, **options: Any) -> Any:
        """Call a method that reads, and that a store must answer in time. Raises TimeoutError, and the store's own."""
        store, patience = self._filesystem, self.patience or Patience(READ_S)
        if not store.async_impl:
            return getattr(store, method)(path, **options)
        began, wait_s = time.monotonic(), max(patience.seconds - patience.waited, LEAST_S)
        try:
            answer = asyn.sync(store.loop, getattr(store, f"_{method}"), path, timeout=wait_s, **options)
        except Exception as e:
            answered = isinstance(e, FileNotFoundError | PermissionError)
            patience.waited = 0.0 if answered else patience.waited + time.monotonic() - began
            if isinstance(e, asyn.FSTimeoutError):
                raise TimeoutError(errno.ETIMEDOUT, f"no answer within {wait_s:.0f} s") from None
            raise
        patience.waited = 0.0
        return answer

    @contextmanager
    def _store_errors(self, name: str) -> Iterator[None]:
        """Convert every exception of a store into an OSError with one line."""
        try:
            yield
        except Exception as e:
            if isinstance(e, OSError) and e.strerror and e.filename:
                raise
            kinds = (FileNotFoundError, FileExistsError, PermissionError)
            kind = next((k for k in kinds if isinstance(e, k)), OSError)
            told = getattr(e, "strerror", None) or e
            text = show_urls(" ".join(str(told).split())) or type(e).__name__
            if kind is PermissionError:
                text += " (check the credentials and what they permit)"
            number = e.errno if isinstance(e, OSError) and e.errno else errno.EIO
            raise kind(number, text, f"{self.place}/{name}".rstrip("/")) from (e.__cause__ or e)  # the store's answer

    @cached_property
    def _store(self) -> tuple[Any, str]:
        """Return the filesystem and the incident's folder; opened on first use, because it must not cross a fork."""
        protocol = fsspec.utils.get_protocol(self.output)
        options: dict[str, Any] = {} if protocol in LocalFileSystem.protocol else {"use_listings_cache": False}
        if s3 := protocol in {"s3", "s3a"}:
            options["config_kwargs"] = _S3 | fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        try:
            fs, path = fsspec.core.url_to_fs(self.output, **options)
        except ImportError as e:
            hint = f": {install_command('s3')}" if s3 else ""
            raise UsageError(
                f"artifacts under {protocol}:// need a package that is not installed ({e}){hint}"
            ) from None
        except Exception as e:
            reason = show_urls(" ".join(str(e).split()))
            wrong = OutputError(f"output {show_url(self.output)} cannot be opened: {reason}")
            if isinstance(e, ValueError):  # there is no such kind of store
                wrong.exit_code = UsageError.exit_code
            raise wrong from None
        if path.encode(errors="replace").decode() != path:
            raise UsageError(f"output {path!a} has a name that is not UTF-8: choose another with --output")
        if s3:
            fs.retries = 1  # `_S3` has the retries already
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


def refuse_reserved(output: str, incident: str) -> None:
    """Raise UsageError if a person names a new incident as the product's own folders are named."""
    if incident != ADHOC and is_reserved(incident) and not Archive(output, incident).may_be_dossier():
        raise UsageError(f"incident {incident}: the name is reserved, choose another such as INC-1")


def _time_of(log: Path) -> str:
    """Return when a log was changed, as text that sorts; "" if there is none."""
    try:
        return f"{log.stat().st_mtime:020.6f}"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError:
        return f"{log.parent.lstat().st_mtime:020.6f}"


def entry_of(line: bytes) -> dict[str, Any] | None:
    """Parse a line of a log; return None if it is not a valid entry."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("kind") not in KINDS:
        return None
    named = entry.get("sha256", {})
    return entry if isinstance(named, dict) and all(map(is_allowed_name, named)) else None


def is_allowed_name(name: str) -> bool:
    """Return whether a log line may have this file name: inside the incident's folder, printable, not too long."""
    return bool(_NAME.fullmatch(name)) and name.isprintable() and len(name.encode()) <= _MAX_NAME_BYTES


def _encode_line(entry: dict[str, Any]) -> bytes:
    """Return an entry as a line of a log, without its newline."""
    return json.dumps(entry, ensure_ascii=False, sort_keys=True).encode()


def _is_own_form(entry: dict[str, Any], line: bytes) -> bool:
    try:
        return _encode_line(entry) == line
    except (ValueError, RecursionError):
        return False


def split_lines(content: bytes | None) -> list[bytes]:
    """Split a log into lines; text after the last newline is a line, too."""
    return content.removesuffix(b"\n").split(b"\n") if content else []


def _of_kind(lines: Iterable[bytes], kind: Kind) -> Entries:
    """Return the entries of a kind; lines that are not valid are left out."""
    return [entry for entry in map(entry_of, lines) if entry and entry["kind"] == kind]


def _find_of_job(entry: dict[str, Any], there: Entries) -> dict[str, Any] | None:
    """Return the existing line of the entry's job for the same section; None if the entry has no job."""
    same = (entry.get("job"), entry.get("section"))
    return next((e for e in there if entry.get("job") and (e.get("job"), e.get("section")) == same), None)


def _is_conflict(e: OSError) -> bool:
    """Return whether a write failed because another machine wrote the file meanwhile."""
    answer = getattr(e.__cause__, "response", None) or {}
    code = answer.get("Error", {}).get("Code")
    return isinstance(e, FileExistsError) or code in {"PreconditionFailed", "ConditionalRequestConflict"}
