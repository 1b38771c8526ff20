"""A recording: the masked evidence of an investigation in one file, which can be replayed without a server.

The file is a ZIP archive. `recording.json` holds the runs: of each section its header and its findings with their
frames. `manifest.json` lists what is included and what was left out, the verdict, and the dossier's seal. The file ends
with a seal of its own, over all bytes before the seal's digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from runbook_lib.model.times import moment
from runbook_lib.model.usage import UsageError, first_problem
from runbook_lib.store.files import read_regular, replace_file
from runbook_lib.store.run import Run, run_from_json

FORMAT = 2
SUFFIX = ".runbook"
_RUNS, _MANIFEST = "recording.json", "manifest.json"
#: Limits of a file, which may be from anybody: bytes, members, bytes unpacked, ratio of these to the packed ones, and
#: JSON values of a member. The largest recording of the tests has 99,000 bytes, 1.7 million unpacked, 85,000 values.
MAX_BYTES, MAX_MEMBERS, MAX_UNPACKED, MAX_RATIO, MAX_VALUES = 16_000_000, 16, 64_000_000, 200, 2_000_000
#: Bytes that are unpacked at once; each may become 7,000.
_PIECE = 4096
#: Hexadecimal digits of the digest at the end of the file.
_DIGITS = 32
_SEAL = re.compile(rb"seal:[^\s:/]+:[\d.]+:[0-9a-f]{%d}\Z" % _DIGITS)
#: A fixed time for each member, so that the same runs give the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


class ChangedError(UsageError):
    """The file is not as it was sealed."""


class _Part(BaseModel):
    """A part of a recording that others read by its names; further ones stay as they are."""

    model_config = ConfigDict(extra="allow", strict=True)


class _Header(_Part):
    """The header of a run."""

    as_of: Annotated[str, AfterValidator(moment)]
    window_minutes: int
    target: str
    incident: str
    given: dict[str, Any] = {}
    clocks: dict[str, Annotated[list[float], Len(2, 2)]] = {}
    behind_s: float = 0.0
    section: str = ""
    title: str = ""
    by: str = ""
    opened: str = ""
    dashboard: str = ""
    parameters: dict[str, Any] = {}


class _About(_Part):
    """Facts about the recording."""

    versions: dict[str, str] = {}


class _Contents(_Part):
    """The manifest."""

    dossier: str = ""
    left_out: list[dict[str, str]] = []
    verdict: dict[str, Any] = {}


@dataclass(frozen=True)
class Recording:
    """The runs of an investigation by section, and facts about them (fault, time, versions)."""

    name: str
    runs: dict[str, Run]
    about: dict[str, Any] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    seal: str = ""
    """The seal of the file; "" before it is written."""

    @property
    def first(self) -> Run:
        """Return the first run of the investigation."""
        return next(iter(self.runs.values()))


def write(path: Path, recorded: Recording) -> str:
    """Write a recording and return its seal. Raises OSError, and UsageError if it is too large to be read."""
    runs = [{"section": r.section, "header": r.header, "findings": r.stored} for r in recorded.runs.values()]
    content = {
        "format": FORMAT,
        "about": recorded.about,
        "runs": runs,
    }
    members = {_RUNS: json.dumps(content, ensure_ascii=False).encode()}
    included = {name: hashlib.sha256(member).hexdigest() for name, member in members.items()}
    manifest = recorded.manifest | {"included": included}
    members[_MANIFEST] = json.dumps(manifest, ensure_ascii=False, indent=1).encode()
    lines = str(manifest.get("dossier", "seal::0:")).split(":")[2]
    return _write_archive(path, members, f"seal:{recorded.name}{SUFFIX}:{lines}:")


def read(path: Path) -> Recording:
    """Read a recording. Raises UsageError, one line, if the file is not a recording."""
    try:
        file = read_regular(path, MAX_BYTES)
        seal = _SEAL.search(file)
        if seal and _digest(file) != file[-_DIGITS:]:
            raise ChangedError(f"{path} was changed after it was sealed: ask for it again")
        members = _read_archive(path, file)
        content = json.loads(members[_RUNS])
        if content["format"] > FORMAT:
            raise UsageError(f"{path} was written by a newer version of runbook: install that one to open it")
        if not seal:
            raise ChangedError(f"{path} has lost its seal: it was changed, ask for it again")
        runs = {str(r["section"]): run_from_json(r) for r in content["runs"]}
        for run in runs.values():
            _Header.model_validate(run.header)
            assert run.by_step is not None  # noqa: S101 - they are restored here, where what is wrong is named
        manifest = json.loads(members[_MANIFEST])
        _About.model_validate(content["about"])
        _Contents.model_validate(manifest)
    except OSError as e:
        raise UsageError(f"the recording {path} cannot be read: {e.strerror or e}") from None
    except UsageError:
        raise
    except ValidationError as e:
        raise UsageError(f"{path} is not a recording of this version: {': '.join(first_problem(e))}") from None
    except Exception:  # a ZIP archive has an error of its own for each kind of damage
        raise UsageError(f"{path} is not a recording: `runbook capsule INCIDENT` writes one") from None
    if not runs:
        raise UsageError(f"the recording {path} contains no run")
    name = path.name.removesuffix(SUFFIX)
    return Recording(name, runs, content["about"], manifest, seal[0].decode())


def _write_archive(path: Path, members: Mapping[str, bytes], seal: str = "") -> str:
    """Write the members, and a seal that begins with `seal`; return the whole seal. Raises OSError and UsageError."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        for name, member in members.items():
            archive.writestr(zipfile.ZipInfo(name, _TIME), member, zipfile.ZIP_LZMA)
        archive.comment = f"{seal}{'0' * _DIGITS}".encode()
    _read_archive(path, content.getvalue())  # what is written can be read
    digest = _digest(content.getvalue())
    replace_file(path, content.getvalue()[:-_DIGITS] + digest)
    return f"{seal}{digest.decode()}"


def _digest(file: bytes) -> bytes:
    """Return the digest over a sealed file without its last digits, as these digits."""
    return hashlib.sha256(file[:-_DIGITS]).hexdigest()[:_DIGITS].encode()


def _read_archive(path: Path, file: bytes) -> dict[str, bytes]:
    """Return the members of an archive, within the limits; `path` is for the error.

    Raises UsageError before what exceeds a limit is unpacked or parsed, or what a damaged file raises.
    """

    def limit(what: str, n: int, most: int) -> None:
        if n > most:
            raise UsageError(f"{path} is too large for a recording: {n:,} {what}, and the limit is {most:,}")

    limit("bytes", len(file), MAX_BYTES)
    limit("files", file.count(b"PK\1\2"), MAX_MEMBERS)  # the start of each entry of the directory
    members = {}
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        entries = archive.infolist()
        limit("bytes unpacked", sum(e.file_size for e in entries), MAX_UNPACKED)
        for e in entries:
            if e.compress_type != zipfile.ZIP_LZMA:
                raise zipfile.BadZipFile
            limit("bytes unpacked per byte", e.file_size // max(e.compress_size, 1), MAX_RATIO)
            # The sizes may be wrong: zipfile stops at the size, but unpacks as a whole what it is asked to read.
            with archive.open(e) as packed:
                content = b"".join(iter(partial(packed.read, _PIECE), b""))
            limit("values", sum(map(content.count, (b"{", b"[", b","))), MAX_VALUES)
            members[e.filename] = content
    return members
