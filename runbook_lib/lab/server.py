"""The Jupyter server extension of `runbook lab`: a saved notebook is cleaned of secrets and archived.

It also serves the start page: the incident's page with the sections to run next, rebuilt at each reload.

It is an extension instead of a `pre_save_hook` in the configuration, so that it works beside a person's own hooks.
"""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat

from runbook_lib.book import catalog, messages
from runbook_lib.book.parameters import mask_free_texts, now, validate
from runbook_lib.dossier import artifact, overview
from runbook_lib.model.finding import replace
from runbook_lib.model.usage import UsageError
from runbook_lib.privacy.masking import Masker, secrets_of
from runbook_lib.sources import settings
from runbook_lib.store import record
from runbook_lib.store.archive import Archive
from runbook_lib.store.files import digest
from runbook_lib.store.lines import run_line
from runbook_lib.store.run import Run, conclusion, read_run, run_of_cells


def _load_jupyter_server_extension(app: Any) -> None:
    app.contents_manager.register_pre_save_hook(before_save)
    app.contents_manager.register_post_save_hook(after_save)
    # Kernels know by it that they may reveal: the hooks are in place.
    os.environ["RUNBOOK_LAB"] = str(os.getpid())
    _serve_incident_page(app.web_app, Path(app.root_dir))


def _serve_incident_page(web_app: Any, folder: Path) -> None:
    """Serve the incident's page under /runbook/INCIDENT/ and what it links to, with the server's authentication."""
    from jupyter_server.base.handlers import AuthenticatedFileHandler, JupyterHandler
    from jupyter_server.utils import url_path_join
    from tornado.web import authenticated

    archive = Archive(str(folder.parent.parent), folder.parent.name)
    base = web_app.settings["base_url"]

    class Start(JupyterHandler):
        @authenticated
        def get(self) -> None:
            own = {n: s.notebook.name for n, s in catalog.load().runnable().items() if s.notebook}
            links = {n: url_path_join(base, "lab/tree", name) for n, name in own.items() if (folder / name).is_file()}
            with messages.using(settings.load().lang):
                self.finish(overview.page(archive, links))

    root = url_path_join(base, "runbook")
    web_app.add_handlers(
        ".*$",
        [
            (rf"{root}/{re.escape(archive.incident)}/(?:{overview.INDEX})?", Start),
            (rf"{root}/(.*)", AuthenticatedFileHandler, {"path": str(folder.parent.parent)}),
        ],
    )


def before_save(model: dict[str, Any], **_: Any) -> None:
    """Take what was revealed, and secrets, out of what the browser sends. Refuses the save when it can not."""
    if model.get("type") != "notebook" or not model.get("content"):
        return
    try:
        artifact.drop_outputs(model["content"], record.REVEALED_MIME)
        artifact.clean_texts(model["content"], Masker(_target_secrets()).without_secrets)
    except Exception as e:
        from tornado.web import HTTPError

        raise HTTPError(500, f"runbook: not saved, it could not be cleaned: {type(e).__name__}") from None


def after_save(model: dict[str, Any], os_path: str, contents_manager: Any, **_: Any) -> None:
    """Archive the run that a saved notebook shows, once it has concluded. Never fails the save."""
    if model.get("type") != "notebook":
        return
    try:
        if name := archive_notebook(Path(os_path)):
            contents_manager.log.info("runbook: archived %s", name)
    except Exception as e:
        detail = str(e) if isinstance(e, UsageError) else f"{type(e).__name__}: {e}"
        contents_manager.log.warning("runbook: %s could not be archived: %s", Path(os_path).name, detail)


def archive_notebook(path: Path) -> str | None:
    """Archive the last run in a notebook like a headless one; its name, or None when there is nothing new.

    What an interrupted save left out is added by the next one. Raises UsageError and OSError.
    """
    nb = artifact.keep_last_run(nbformat.read(path, as_version=4))
    if nb is None or (config := settings.load()).replay:
        return None
    header = conclusion(nb.cells)["header"]
    parameters = {"incident_id": header["incident"], "target": header["target"]} | header["parameters"]
    validate(parameters)
    archive = Archive(config.output, header["incident"])
    shown = digest(json.dumps([o for c in nb.cells for o in c.get("outputs", [])], sort_keys=True).encode())
    job, lang = f"lab:{shown}", parameters.get("lang", "en")
    there = archive.of_job(job)
    older = any(e.get("outputs") == shown and "job" not in e for e in archive.manifest())  # by 0.5.0
    if older or {header["section"], ""} <= there.keys():
        with messages.using(lang):
            overview.write_index(archive)
        return None
    masker = Masker.of(config.target(header["target"]).urls(), header["incident"], archive.salt)
    archive.prepare()  # before the first token is made
    parameters = mask_free_texts(parameters, masker)
    artifact.scrub(nb, masker)
    for cell in nb.cells:
        cell.source = masker.scrub_once(cell.source)
    book = catalog.load()
    if header["section"] not in there:
        run = replace(run_of_cells(nb.cells, header["section"], book), started=header["opened"], ended=now())
        _append_run(archive, nb, run, parameters, job=job, outputs=shown)
        there = archive.of_job(job)
    run = read_run(archive, run_line(archive, there[header["section"]]))
    with messages.using(lang):
        said = overview.document(archive.incident, header["target"], [run], run.verdict)
        overview.keep(archive, [run], said, job)
        overview.write_index(archive)
    return str(there[run.section]["name"])


def _append_run(archive: Archive, nb: Any, run: Run, parameters: dict[str, Any], **more: Any) -> None:
    """Archive a run's notebook, page and evidence. Raises UsageError and OSError."""
    stem = archive.reserve(f"{artifact.stamp(run.started)}-{run.section}")
    try:
        made = artifact.make(nb, run, parameters, stem, interactive=True, **more)
        archive.append(made.entry, made.files)
    finally:
        archive.release(stem)


def _target_secrets() -> tuple[str, ...]:
    """Return the secrets of every target; a target with invalid settings is skipped, so that the save goes on."""
    urls: list[str] = []
    with suppress(Exception):
        config = settings.load()
        for name in ("default", "sandbox", *config.targets):
            with suppress(Exception):
                urls += config.target(name).urls()
    return secrets_of(urls)
