"""The Jupyter server extension of `runbook lab`: a saved notebook is cleaned of secrets.

It also serves the start page: the incident's page with the sections to run next, rebuilt at each reload.

It is an extension instead of a `pre_save_hook` in the configuration, so that it works beside a person's own hooks.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from runbook_lib.book import catalog, messages
from runbook_lib.dossier import artifact, overview
from runbook_lib.privacy.masking import Masker, secrets_of
from runbook_lib.sources import settings
from runbook_lib.store.archive import Archive


def _load_jupyter_server_extension(app: Any) -> None:
    app.contents_manager.register_pre_save_hook(before_save)
    # Kernels know by it that they may keep the user ids of tokens in memory.
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
    """Take secrets out of what the browser sends. Refuses the save when it can not."""
    if model.get("type") != "notebook" or not model.get("content"):
        return
    try:
        artifact.clean_texts(model["content"], Masker(_target_secrets()).without_secrets)
    except Exception as e:
        from tornado.web import HTTPError

        raise HTTPError(500, f"runbook: not saved, it could not be cleaned: {type(e).__name__}") from None


def _target_secrets() -> tuple[str, ...]:
    """Return the secrets of every target; a target with invalid settings is skipped, so that the save goes on."""
    urls: list[str] = []
    with suppress(Exception):
        config = settings.load()
        for name in ("default", "sandbox", *config.targets):
            with suppress(Exception):
                urls += config.target(name).urls()
    return secrets_of(urls)
