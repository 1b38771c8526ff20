"""What others wrote is shown on a terminal, and not obeyed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbook_lib.book import catalog
from runbook_lib.cli import common, terminal
from runbook_lib.runs import replay
from runbook_lib.store import capsule
from tests.kit import RECORDINGS, ROOT
from tests.kit.command import runbook

SAMPLE = ROOT / "outputs" / "sample"
#: It clears the screen, turns the direction of writing, hides what follows, and names a window.
ORDERS = "\x1b[2J\x9b8m\u202e\u2066\x07\b\r\x1b]0;x\u200b"
SHOWN = r"\x1b[2J\x9b8m\u202e\u2066\x07\x08\r\x1b]0;x\u200b"


def is_shown(text: str) -> bool:
    return all(c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A capsule and a dossier whose texts and files hold orders to a terminal."""
    runs = capsule.read(RECORDINGS / "worker_hung.runbook").values()
    for run in runs:
        for found in run.stored:
            found["headline"] = {lang: f"{words} {ORDERS}" for lang, words in found["headline"].items()}
    archive = replay.build(str(tmp_path / "made"), "c", runs, catalog.load(), [f"left out: {ORDERS}"])
    capsule.write(tmp_path / "c.runbook", archive)
    shutil.copytree(SAMPLE, tmp_path / "outputs" / "sample")
    (tmp_path / "outputs" / "sample" / f"x{ORDERS}.html").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ("open", "c.runbook", "--no-browser"),
        ("open", f"absent{ORDERS}"),
        ("verify", "sample"),
        ("run", f"4.1{ORDERS}"),
        (f"no-command{ORDERS}",),
    ],
    ids=lambda arguments: arguments[0][:7],
)
def test_what_a_terminal_would_obey_is_shown(planted: Path, arguments: tuple[str, ...]) -> None:
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "RUNBOOK_LANG": "en"}
    done = runbook(*arguments, env=env, cwd=planted)
    assert SHOWN in done.stdout + done.stderr and is_shown(done.stdout) and is_shown(done.stderr)


@given(st.text() | st.lists(st.sampled_from([*ORDERS, "\n", "\r\n", "　", "é"])).map("".join))
def test_any_text_is_shown_and_json_stays_json(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stream = terminal.TerminalStream(
            raw := io.BytesIO(), "utf-8", "backslashreplace", newline="\n", write_through=True
        )
        patch.setattr(sys, "stdout", stream)
        print(text)  # whatever writes on it
        assert is_shown(raw.getvalue().decode())
        raw.truncate(raw.seek(0))
        common.say_json({"text": text})
        written = raw.getvalue().decode()
        assert json.loads(written) == {"text": text} and "\x9b" not in written and "\u202e" not in written
        stream.detach()


def test_the_colours_of_the_command_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for tty, expected in ((True, f"\x1b[31mred {SHOWN}\x1b[0m\x1b[K"), (False, f"red {SHOWN}")):
        stream = terminal.TerminalStream(raw := io.BytesIO(), "ascii", "backslashreplace", write_through=True)
        monkeypatch.setattr(stream, "isatty", lambda tty=tty: tty)
        monkeypatch.setattr(sys, "stdout", stream)
        terminal.draw(terminal.paint(f"red {ORDERS}", fg="red") + "\x1b[K")
        assert raw.getvalue().decode() == expected
