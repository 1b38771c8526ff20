"""Cells executed in this process, with IPython's shell, display and magics as a kernel has them.

A run needs no second process that it would have to start, to talk to over sockets, and to watch: its own is forked from
one that has imported what notebooks need.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, BinaryIO

from IPython.core import page
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.jsonutil import json_default
from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_output
from traitlets.config import Config

#: Characters of text that a cell may print; what it prints beyond is counted, and left out.
MOST = 1_000_000

#: What ends the notebook (see `end`), and whether a cell runs.
_ending: BaseException | None = None
_running = False


def end(error: BaseException) -> None:
    """Raise an error in the cell that runs, and from `Shell.execute`; for a handler of signals."""
    global _ending, _running
    _ending = error
    if _running:
        _running = False  # once: what the cell still does to end is not disturbed
        raise error


class Outputs:
    """The outputs of the cell that runs, in their order."""

    def __init__(self) -> None:
        self._cell: NotebookNode | None = None
        self._printed, self._clear = 0, False
        self._displays: dict[str, list[NotebookNode]] = {}

    def begin(self, cell: NotebookNode) -> None:
        """Take the outputs of a cell from now on."""
        self._cell, self._printed, self._clear = cell, 0, False
        cell.outputs = []

    def end(self) -> None:
        """Say how much of what the cell printed was left out."""
        if self._printed > MOST:
            left_out, self._printed = self._printed - MOST, 0
            self.write("stderr", f"\n... {left_out:,} characters left out\n")

    def add(self, kind: str, **fields: Any) -> None:
        """Add an output."""
        if self._cell is not None:
            self._clear_if_told()
            self._cell.outputs.append(new_output(kind, **fields))

    def write(self, name: str, text: str, left_out: int = 0) -> None:
        """Add text to a stream; so many of its characters have been left out already."""
        room = max(MOST - self._printed, 0)
        self._printed += len(text) + left_out
        if self._cell is None or not (text := text[:room]):
            return
        self._clear_if_told()
        last = self._cell.outputs[-1] if self._cell.outputs else {}
        if last.get("output_type") == "stream" and last["name"] == name:
            last["text"] += text
        else:
            self.add("stream", name=name, text=text)

    def show(self, kind: str, data: Any, metadata: Any, id_: str | None = None, **fields: Any) -> None:
        """Add a display; one with an id may be updated."""
        self.add(kind, data=_as_json(data), metadata=_as_json(metadata or {}), **fields)
        if id_ and self._cell is not None:
            self._displays.setdefault(id_, []).append(self._cell.outputs[-1])

    def update(self, id_: str, data: Any, metadata: Any) -> None:
        """Change each display with an id, whichever cell has it."""
        for shown in self._displays.get(id_, ()):
            shown.data, shown.metadata = _as_json(data), _as_json(metadata or {})

    def clear(self, *, wait: bool) -> None:
        """Remove the cell's outputs, now or before the next one."""
        self._clear = True
        if not wait:
            self._clear_if_told()

    def _clear_if_told(self) -> None:
        if self._clear and self._cell is not None:
            self._cell.outputs, self._clear = [], False


def _as_json(bundle: Mapping[str, Any]) -> Any:
    """Return what a notebook can store of a bundle of MIME types."""
    data = {k: b64encode(v).decode("ascii") if isinstance(v, bytes) else v for k, v in bundle.items()}
    return from_dict(json.loads(json.dumps(data, default=json_default)))


class _Stream(io.TextIOBase):
    encoding, errors = "utf-8", "replace"

    def __init__(self, outputs: Outputs, name: str, descriptor: int) -> None:
        self._outputs, self._name, self._descriptor = outputs, name, descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def write(self, text: str, /) -> int:
        self._outputs.write(self._name, text)
        return len(text)


class _Publisher(DisplayPublisher):
    def publish(  # type: ignore[override]
        self, data: Any, metadata: Any = None, *, transient: Any = None, update: bool = False, **_: Any
    ) -> None:
        outputs, id_ = self.shell.outputs, (transient or {}).get("display_id")
        if update:
            outputs.update(id_, data, metadata)
        else:
            outputs.show("display_data", data, metadata, id_)

    def clear_output(self, wait: bool = False) -> None:
        self.shell.outputs.clear(wait=wait)


class _Hook(DisplayHook):
    def write_output_prompt(self) -> None: ...

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        outputs: Outputs = self.shell.outputs  # type: ignore[union-attr]
        outputs.show("execute_result", format_dict, md_dict, execution_count=self.prompt_count)

    def finish_displayhook(self) -> None: ...


class Shell(InteractiveShell):
    """IPython's shell, whose outputs become those of cells."""

    def __init__(self, **options: Any) -> None:
        self.outputs = Outputs()
        without_history = Config()
        without_history.HistoryManager.enabled = False
        options |= {"config": without_history, "display_pub_class": _Publisher, "displayhook_class": _Hook}
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self.set_hook("show_in_pager", page.as_hook(page.display_page), 99)  # type: ignore[no-untyped-call]

    def enable_gui(self, gui: Any = None) -> None:
        """Do nothing: there is no event loop to enable."""

    def ask_exit(self) -> None:
        """Do nothing: who ends the last cell ends the notebook."""

    def _showtraceback(self, etype: Any, evalue: Any, stb: list[str]) -> None:
        if _ending is None:  # else whoever ends the notebook says why
            self.outputs.add("error", ename=str(etype.__name__), evalue=str(evalue), traceback=stb)

    def execute(self, cell: NotebookNode) -> bool:
        """Execute a code cell; return whether it ended without an error. Raises the error of `end`."""
        global _running
        self.outputs.begin(cell)
        cell.execution_count = self.execution_count
        try:
            with _captured_descriptors(self.outputs):
                _running = True
                if _ending is None:
                    ended = self.run_cell(cell.source, store_history=True)  # type: ignore[no-untyped-call]
                _running = False
        finally:
            _running = False
            self.outputs.end()
        if _ending is not None:
            raise _ending
        return bool(ended.success)


@contextmanager
def started() -> Iterator[Shell]:
    """Start the shell of a notebook; what cells print is theirs, and nobody answers what they ask for."""
    global _ending
    shell, before = Shell.instance(), sys.stdin
    streams = (_Stream(shell.outputs, "stdout", 1), _Stream(shell.outputs, "stderr", 2))
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]), Path(os.devnull).open(encoding="utf-8") as nobody:
        sys.stdin = nobody
        try:
            yield shell
        finally:
            sys.stdin, _ending = before, None
            Shell.clear_instance()


@contextmanager
def _captured_descriptors(outputs: Outputs) -> Iterator[None]:
    """Add to the outputs what programs and libraries write to the process's own stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files: dict[int, tuple[str, BinaryIO]] = {1: ("stdout", out), 2: ("stderr", err)}
        saved = {descriptor: os.dup(descriptor) for descriptor in files}
        try:
            for descriptor, (_, file) in files.items():
                os.dup2(file.fileno(), descriptor)
            yield
        finally:
            for descriptor, copy in saved.items():
                os.dup2(copy, descriptor)
                os.close(copy)
            for name, file in files.values():
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                outputs.write(name, file.read(MOST).decode("utf-8", "replace"), left_out=max(size - MOST, 0))
