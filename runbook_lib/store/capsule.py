"""A capsule: a masked dossier in one file, which is unpacked and read as any dossier.

The file is a ZIP archive of the dossier's folder, compressed as a whole by xz: the sections of an incident repeat each
other, and compressed one by one they take twice the space. It has the log, evidence and verdicts; no pages, which
could hold anybody's script.
"""

from __future__ import annotations

import io
import lzma
import stat
import tempfile
import zipfile
from pathlib import Path

from runbook_lib.model.usage import UsageError
from runbook_lib.store.archive import LOG, WRITTEN_EARLIER, Archive, is_allowed_name
from runbook_lib.store.files import read_regular, replace_file
from runbook_lib.store.run import Run, read_runs

SUFFIX = ".runbook"
#: Limits of a file, which may be from anybody: bytes, bytes unpacked, members, lines of the log, JSON values. The
#: largest recording of the tests has 105,000 bytes, 1.8 million unpacked, 91,000 values.
MAX_BYTES, MAX_UNPACKED, MAX_MEMBERS, MAX_LINES, MAX_VALUES = 16_000_000, 64_000_000, 200, 200, 2_000_000
#: What the unpacker may use; a file that was packed by the strongest setting needs half of it.
_MEMORY = 128_000_000
#: A fixed time for each member, so that the same dossier gives the same bytes.
_TIME = (1980, 1, 1, 0, 0, 0)


def write(path: Path, archive: Archive) -> None:
    """Write a capsule of a dossier that has no other files than a capsule may have.

    Raises OSError, and UsageError if it is too large to be read.
    """
    assert archive.local is not None  # noqa: S101 - a dossier is packed from a temporary folder
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        for file in sorted(filter(Path.is_file, archive.local.rglob("*"))):
            name = f"{archive.incident}/{file.relative_to(archive.local).as_posix()}"
            packed.writestr(zipfile.ZipInfo(name, _TIME), file.read_bytes())
    whole = lzma.compress(content.getvalue())
    _read_members(path, whole)  # what is written can be read
    replace_file(path, whole)


def unpack(path: Path, folder: Path) -> Archive:
    """Unpack a capsule into an empty folder; return its dossier. Raises UsageError, one line; OSError of the folder."""
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as e:
        raise UsageError(f"the recording {path} cannot be read: {e.strerror or e}") from None
    members = _read_members(path, content)
    for name, member in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(member)
    return Archive(str(folder), next(iter(members)).partition("/")[0], people=False)


def read(path: Path) -> dict[str, Run]:
    """Return the runs of a capsule by section. Raises UsageError, one line, also for a run that was changed."""
    with tempfile.TemporaryDirectory(prefix="runbook-") as folder:
        archive = unpack(path, Path(folder))
        try:
            runs = {run.section: run for run in read_runs(archive)}
        except Exception as e:  # whatever a file from anybody raises
            wrong = getattr(e, "strerror", None) or f"{type(e).__name__}: {e}"
            raise UsageError(f"the recording {path} cannot be read: {wrong}") from None
    if not runs:
        raise UsageError(f"the recording {path} contains no run")
    return runs


def _read_members(path: Path, content: bytes) -> dict[str, bytes]:
    """Return the files in a capsule by name, within the limits; `path` is for the error.

    Raises UsageError before what exceeds a limit is unpacked or parsed.
    """

    def limit(what: str, n: int, most: int) -> None:
        if n > most:
            raise UsageError(f"{path} is too large for a recording: {n:,} {what}, and the limit is {most:,}")

    if content[30:44] == b"recording.json":  # the name of the first file in a ZIP archive
        raise UsageError(f"{path} {WRITTEN_EARLIER}")
    limit("bytes", len(content), MAX_BYTES)
    try:
        unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY)
        whole = unpacker.decompress(content, MAX_UNPACKED + 1)
        limit("bytes unpacked", len(whole), MAX_UNPACKED)
        if not unpacker.eof or unpacker.unused_data:
            raise EOFError
        limit("files", whole.count(b"PK\1\2"), MAX_MEMBERS)  # the start of each entry of the directory
        with zipfile.ZipFile(io.BytesIO(whole)) as packed:
            entries = packed.infolist()
            limit("bytes unpacked", sum(e.file_size for e in entries), MAX_UNPACKED)  # several may have the same bytes
            members = {e.filename: packed.read(e) for e in entries if _is_allowed(e)}
        (root,) = {name.partition("/")[0] for name in members}
        if len(members) != len(entries):
            raise zipfile.BadZipFile
        limit("lines", members[f"{root}/{LOG}"].count(b"\n"), MAX_LINES)
    except UsageError:
        raise
    except Exception:  # each kind of damage has an error of its own
        raise UsageError(f"{path} is not a recording, or is damaged: `runbook capsule INCIDENT` writes one") from None
    limit("values", sum(member.count(mark) for member in members.values() for mark in (b"{", b"[", b",")), MAX_VALUES)
    return members


def _is_allowed(entry: zipfile.ZipInfo) -> bool:
    """Return whether a member is a file that a capsule may have."""
    root, _, name = entry.filename.partition("/")
    inside = is_allowed_name(root) and is_allowed_name(name) and (name == LOG or name.endswith(".json"))
    return inside and entry.compress_type == zipfile.ZIP_STORED and not stat.S_ISLNK(entry.external_attr >> 16)
