"""Interactive use: copies that are filled in once, and kernels that find the settings of the folder they came from."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from runbook_lib.book import catalog, messages
from runbook_lib.book.parameters import validate
from runbook_lib.lab import copies as lab
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings
from runbook_lib.store.archive import Archive

BOOK = catalog.load()


def parameters(path: Path) -> dict[str, Any]:
    (cell,) = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    found: dict[str, Any] = {}
    exec(cell.source, found)
    return found


def test_copies_have_target_and_incident(tmp_path: Path) -> None:
    folder = Path(lab.prepare_copies(Archive(str(tmp_path), "INC-1"), "production", BOOK))
    copies = sorted(folder.glob("*.ipynb"))
    assert {p.name for p in copies} == {s.notebook.name for s in BOOK.runnable().values()}  # type: ignore[union-attr]
    for path in copies:
        found = parameters(path)
        assert (found["incident_id"], found["target"], found["lang"]) == ("INC-1", "production", "en")


def test_links_of_a_copy_lead_somewhere(tmp_path: Path) -> None:
    folder = Path(lab.prepare_copies(Archive(str(tmp_path), "INC-1"), "production", BOOK))
    for path in folder.glob("*.ipynb"):
        text = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown")
        links = re.findall(r"(?:\]\(|^\[[^\]]+\]: )([^)#\s]+)", text, re.MULTILINE)
        assert links
        assert [link for link in links if not (folder / link).is_file()] == []
    for name in catalog.DOCUMENTS:
        text = (folder / "docs" / f"{name}.md").read_text()
        links = re.findall(rf"\]\(([^)#\s]*(?:{'|'.join(catalog.DOCUMENTS)})\.md)", text)
        assert [link for link in links if not (folder / "docs" / link).is_file()] == []


def test_a_new_copy_is_in_one_language_and_keeps_it(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    for lang in ("ja", "en"):
        with messages.using(lang):
            folder = Path(lab.prepare_copies(archive, "default", BOOK))
        copy = folder / "04_1_not_delivered.ipynb"
        text = "\n".join(c.source for c in nbformat.read(copy, as_version=4).cells if c.cell_type == "markdown")
        assert "# 4.1 通知が届かない" in text and "Notifications do not arrive" not in text
        assert "何を問い合わせるか" in text and "notifications/backlog" in text
        assert parameters(copy)["lang"] == "ja"


def test_without_a_setting_the_locale_names_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUNBOOK_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    assert settings.Settings().lang == "en"
    monkeypatch.setenv("LANG", "ja_JP.UTF-8")
    assert settings.Settings().lang == "ja"
    monkeypatch.setenv("RUNBOOK_LANG", "en")
    assert settings.Settings().lang == "en"


def test_a_copy_that_was_worked_on_is_kept_and_follows_the_target(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    folder = Path(lab.prepare_copies(archive, "default", BOOK))
    (folder / "02_scope.ipynb").write_text("notes")
    copy = folder / "04_1_not_delivered.ipynb"
    nb = nbformat.read(copy, as_version=4)
    nb.cells.append(nbformat.v4.new_code_cell("target = 'mine'"))
    nbformat.write(nb, copy)
    lab.prepare_copies(archive, 'odd "\\name\\"', BOOK)
    assert (folder / "02_scope.ipynb").read_text() == "notes"
    assert parameters(copy)["target"] == 'odd "\\name\\"'
    lab.prepare_copies(archive, "staging", BOOK)
    assert parameters(copy)["target"] == "staging"
    assert nbformat.read(copy, as_version=4).cells[-1].source == "target = 'mine'"


def test_a_copy_that_is_a_fifo_blocks_nothing(tmp_path: Path) -> None:
    archive = Archive(str(tmp_path), "INC-1")
    copy = Path(lab.prepare_copies(archive, "default", BOOK)) / "02_scope.ipynb"
    copy.unlink()
    os.mkfifo(copy)
    with pytest.raises(OSError, match="it is not a regular file"):
        lab.prepare_copies(archive, "default", BOOK)


@pytest.mark.parametrize("name", ["sample", "a b (1)", "障害", "x" * 300])
def test_a_recording_opens_as_an_incident_whatever_it_is_called(name: str) -> None:
    incident = lab.replay_incident(Path("somewhere", f"{name}.runbook"))
    assert incident.startswith("replay-") and len(incident) <= 60
    assert validate({"incident_id": incident}).incident_id == incident


def test_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="local folder as --output"):
        lab.prepare_copies(Archive("memory://lab", "INC-1"), "default", BOOK)


class Started(Exception):
    """What would have taken the place of this process."""


def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, config: str = "", target: str = "default"
) -> tuple[list[str], dict[str, str]]:
    for name in ("RUNBOOK_CONFIG", "RUNBOOK_SANDBOX_DIR", "RUNBOOK_OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runbook.toml").write_text(config)

    def execve(_: str, command: list[str], env: dict[str, str]) -> None:
        raise Started(command, env)

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(Started) as started:
        lab.open_lab(settings.load(), "outputs", "INC-1", target, BOOK, arguments)
    command, env = started.value.args
    return command, env


def test_kernels_find_settings_sandbox_and_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, env = start(tmp_path, monkeypatch)
    assert f"--ServerApp.root_dir={tmp_path}/outputs/INC-1/lab" in command
    assert env["RUNBOOK_CONFIG"] == str(tmp_path / "runbook.toml")
    assert env["RUNBOOK_SANDBOX_DIR"] == str(tmp_path / ".sandbox")
    assert env["RUNBOOK_OUTPUT"] == str(tmp_path / "outputs")


TARGETS = """
[receiver]
notify_urls = "env:CHANNELS"
[targets.one]
database_url = "env:ONE_URL"
action_nats_url = "env:SHARED"
nats_token = "env:shared-token"
[targets.two]
nats_url = "env:TWO_URL"
database_password = "env:SHARED"
nats_token = "env:shared-token"
[targets.three]
nats_url = "cmd:printenv SHARED"
database_url = "cmd:sh -c 'printenv OF_THREE; echo ${ALSO_THREE:-none} $THIRD $AWS_PROFILE $HTTPS_PROXY >> $HOME/log'"
ledger = "s3://bucket/ledger"
"""
RECEIVERS = {"RUNBOOK_RECEIVER_TOKEN", "RUNBOOK_RECEIVER", "RUNBOOK_NOTIFY_URLS", "CHANNELS"}
OF_DEFAULT = {"RUNBOOK_DATABASE_URL", "RUNBOOK_NATS_PASSWORD", "RUNBOOK_ACTION_DATABASE_URL", "RUNBOOK_LEDGER"}
OF_THREE = {"OF_THREE", "ALSO_THREE", "THIRD"}
ANYBODYS = {"AWS_PROFILE", "HTTPS_PROXY"}
STORES = {"AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "FSSPEC_S3"}


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("one", {"ONE_URL", "SHARED", "shared-token"}),
        ("two", {"TWO_URL", "SHARED", "shared-token"}),
        ("three", {"SHARED", *OF_THREE, *STORES}),
        ("default", {*OF_DEFAULT, *STORES}),
        ("sandbox", set()),
    ],
)
def test_kernels_get_the_secrets_of_the_opened_target_only(
    target: str, kept: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secrets = {*RECEIVERS, *OF_DEFAULT, *OF_THREE, *STORES, "ONE_URL", "TWO_URL", "SHARED", "shared-token"}
    for name in (*secrets, *ANYBODYS):
        monkeypatch.setenv(name, '{"workers": 2}' if name == "RUNBOOK_RECEIVER" else "s3://s3cret")
    monkeypatch.setenv("RUNBOOK_DATABASE_URL", "postgresql://127.0.0.1/app")
    monkeypatch.setenv("RUNBOOK_ACTION_DATABASE_URL", "postgresql://127.0.0.1/app")
    monkeypatch.setenv("RUNBOOK_TARGETS__FOUR__NATS_URL", "nats://:s3cret@127.0.0.1")
    _, env = start(tmp_path, monkeypatch, config=TARGETS, target=target)
    assert secrets & {*env} == kept
    assert "nats://:s3cret@127.0.0.1" not in str(env) and {"PATH", "HOME", *ANYBODYS} <= {*env}


def test_of_targets_in_the_environment_a_kernel_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNBOOK_TARGETS", '{"a": {"nats_url": "nats://a:1"}, "b": {"nats_url": "nats://b:1"}}')
    _, env = start(tmp_path, monkeypatch, target="a")
    assert "nats://b:1" not in str(env)
    monkeypatch.setenv("RUNBOOK_TARGETS", env["RUNBOOK_TARGETS"])
    assert settings.load().target("a").url("nats_url") == "nats://a:1"


def test_further_arguments_go_to_jupyterlab_and_cannot_open_it_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, _ = start(tmp_path, monkeypatch, "--no-browser", "--port=8899")
    assert command.index("--port=8899") < command.index("--ServerApp.ip=127.0.0.1")
    assert "--allow-root" not in command
    for argument in ("--ip=0.0.0.0", "--ip", "--ServerApp.ip=::", "--", "--ServerApp.jpserver_extensions={}"):
        with pytest.raises(UsageError):
            lab.open_lab(
                settings.load(), "outputs", "INC-1", "default", BOOK, ["--no-browser", argument, "02_scope.ipynb"]
            )


def test_without_jupyterlab_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jupyterlab", None)
    with pytest.raises(UsageError, match=r"pip install '.\[lab\]' in the checkout, or 'FILE.whl\[lab\]'"):
        lab.open_lab(settings.load(), str(tmp_path / "out"), "INC-1", "default", BOOK)
    assert not (tmp_path / "out").exists()


def test_a_secret_file_is_looked_for_beside_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runbook.toml").write_text('[targets.production]\ndatabase_url = "file:database-url"\n')
    (tmp_path / "database-url").write_text("postgresql://reader@db/app\n")
    monkeypatch.setenv("RUNBOOK_CONFIG", str(tmp_path / "runbook.toml"))
    assert settings.load().target("production").url("database_url") == "postgresql://reader@db/app"


def test_a_command_is_not_run_for_each_reader_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runbook.toml").write_text(
        "[targets.production]\nnats_url = \"cmd:sh -c 'echo >> runs; echo nats://127.0.0.1:4222'\"\n"
    )
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert settings.load().target("production").url("nats_url") == "nats://127.0.0.1:4222"
    assert (tmp_path / "runs").read_text() == "\n"
