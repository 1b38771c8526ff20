"""Add the pages outside of docs/ to the site, and generate those of the reference (hook of MkDocs)."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[2]
_EXAMPLE = tuple(f"examples/procrastinate/{page}.md" for page in ("README", "docs/slo", "docs/failure-modes"))
#: Documents in the folder of the pack.
_DATA = ("observations", "numbers")
#: Pages of the site by the file that has their text.
PAGES = {
    "README.md": "index.md",
    **{f"runbook_lib/packs/entitlement/{name}.md": f"reference/{name}.md" for name in _DATA},
    "docs/schemas": "reference/schemas.md",
    **{name: name for name in ("README.ja.md", "CONTRIBUTING.md", "CHANGELOG.md", "outputs/README.md", *_EXAMPLE)},
    **{name: name for name in (p.relative_to(ROOT).as_posix() for p in ROOT.glob("outputs/sample/**/[!.]*.*"))},
}
_SOURCES = {uri: source for source, uri in PAGES.items() if (ROOT / source).is_file()}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+(?:\([^()]*\))?[^()\s]*)\)")
#: A line break between two Japanese characters, which Markdown would show as a space.
_JAPANESE_BREAK = re.compile(r"(?<=[\u3001-\u30ff\u4e00-\u9fff])\n(?=[\u3040-\u30ff\u4e00-\u9fff])")
_FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of `PAGES`, and the generated ones."""
    for source, uri in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    made = {"commands": _commands(), "settings": _settings(), "schemas": _schemas()}
    for name, parts in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content="\n\n".join(parts) + "\n"))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of the repository for the site; a link to source code becomes plain text.

    Raises PluginError if a link leads to no file.
    """
    uri = page.file.src_uri
    source = _SOURCES.get(uri, f"docs/{uri}")

    def rewrite(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        name, mark, anchor = target.partition("#")
        if not name or re.match(r"[a-z]+://|mailto:", target):
            return link.group()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        to = PAGES.get(there) or (there.removeprefix("docs/") if there.startswith("docs/") else "")
        if not to:
            if not (ROOT / there).exists():
                raise PluginError(f"{source}: the link {target} leads nowhere")
            return text
        return f"{image}[{text}]({posixpath.relpath(to, posixpath.dirname(uri))}{mark}{anchor})"

    parts = _FENCE.split(markdown)
    return "".join(part if i % 2 else _JAPANESE_BREAK.sub("", _LINK.sub(rewrite, part)) for i, part in enumerate(parts))


def _commands() -> Iterator[str]:
    from runbook_lib.cli.main import cli

    yield "# Commands"
    yield "What `--help` prints. Exit codes: [README](../index.md#three-ways-to-use-it)."

    def pages(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
        context = click.Context(command, parent, name, terminal_width=80, **cli.context_settings)
        yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```"
        if isinstance(command, click.Group):
            for each in command.list_commands(context):
                if (found := command.get_command(context, each)) and not found.hidden:
                    yield from pages(found, each, context)

    yield from pages(cli, "runbook", None)


#: What the settings mean whose field has no description, by section and name.
_MEANINGS = {
    "": {
        "output": "folder or URL of the artifacts",
        "lang": "language of artifacts and screen: en or ja",
        "replay": "a recording that answers in place of every source (`runbook lab --replay`)",
    },
    "[targets.NAME]": {
        "database_url": "the database",
        "replica_url": "a streaming replica, for queries about the window",
        "pgbouncer_console": "whether PgBouncer's console may be asked (the role is in its `stats_users`)",
        "nats_url": "the broker; one or several nodes",
        "nats_monitor_url": "its monitoring ports; one or several",
        "destination_url": "a health address of the notifications' destination",
        "redis_url": "optional source",
        "prometheus_url": "optional source",
        "action_database_url": "credentials for actions",
        "action_nats_url": "credentials for actions",
        "database_password": "the password of `database_url`, where that has none",
        "grafana_link": "link to a dashboard, with `{from_ms}`, `{to_ms}`, `{hop}`, `{target}`, `{incident}`",
        "trace_link": "link to an event's trace, with `{trace_id}`",
        "approval": "a second person approves each action",
        "ledger": "folder or URL where actions are recorded",
        "thresholds": "thresholds that replace those of docs/slo.md, by name",
    },
    "[targets.NAME.workloads]": {
        "runner": "kubectl or supervisorctl",
        "namespace": "kubectl: the namespace",
        "context": "kubectl: the context; default: the current one",
        "psql": "the command that opens psql, for proposals; default: in `statefulset/postgres`, or on this machine",
        "database": "psql: the database, and the owner of the same name",
        "supervisorctl": "the program and its arguments",
        "containers": "kubectl: a workload's container, if its name is not the workload's",
        "log_files": "supervisorctl: a workload's log file",
        "env_file": "supervisorctl: the file of NAME=VALUE lines that the programs read at their start",
        "entitlement": "the workload's name",
        "notification": "the workload's name",
        "nats": "the workload's name",
    },
    "[targets.NAME], with the prefix nats_": {
        "creds_file": "a user's JWT and seed",
        "nkey_file": "a user's seed",
        "ca_file": "the CA of the brokers' certificates and monitoring ports",
        "cert_file": "the runbook's certificate",
        "key_file": "its key, without a password",
        "user": "instead of in the URL",
        "password": "with `nats_user`",
        "token": "instead of user and password",
        "domain": "the JetStream domain",
        "api_prefix": "the prefix of the JetStream API, if not `$JS.API`",
    },
    "[budget]": {
        "statement_timeout_ms": "limit of a statement",
        "lock_timeout_ms": "limit of a wait for a lock",
        "idle_timeout_ms": "limit of an idle transaction",
        "connect_timeout_s": "limit of a connection attempt",
        "max_plan_cost": "the planner's cost above which a query is not sent",
        "max_rows": "rows of a result",
    },
    "[receiver]": {},
    "[[routes]]": {
        "alertname": "matches the alert's name",
        "labels": "matches these labels",
        "sections": "sections to run",
        "target": "default: the alert's label runbook_target, then the default target",
        "parameters": "parameters of the notebooks",
    },
}


def _settings() -> Iterator[str]:
    from runbook_lib.sources import settings

    yield "# Settings"
    yield (
        "Of `runbook.toml`; each also as an environment variable, `RUNBOOK_OUTPUT` or `RUNBOOK_BUDGET__MAX_ROWS`. "
        "A target's addresses may end in `_env` or `_file`; more on targets: "
        "[operations](../operations.md#where-a-target-is)."
    )
    facts = settings.facts_of({})
    tables: list[tuple[str, tuple[type[BaseModel], ...]]] = [
        ("", (settings.Settings,)),
        ("[targets.NAME]", (settings.Target, type(facts))),
        ("[targets.NAME.workloads]", (type(facts.workloads),)),
        ("[targets.NAME], with the prefix nats_", (settings.NatsAccess,)),
        ("[budget]", (settings.Budget,)),
        ("[receiver]", (settings.ReceiverSettings,)),
        ("[[routes]]", (settings.Route,)),
    ]
    skipped = {"services", "facts", "targets", "routes"}
    for title, models in tables:
        rows = ["| Name | Default | Meaning |", "|---|---|---|"]
        for name, field in ((n, f) for model in models for n, f in model.model_fields.items()):
            if name in skipped or isinstance(field.default, BaseModel) or (not title and name in settings.URLS):
                continue
            meaning = field.description or _MEANINGS.get(title, {}).get(name)
            if not meaning:
                raise PluginError(f"{title} {name} has no meaning: describe the field, or add it to _MEANINGS")
            rows.append(f"| `{name}` | {_default(field)} | {meaning} |")
        yield f"## {title or 'The file itself'}\n\n" + "\n".join(rows)


def _default(field: FieldInfo) -> str:
    """Return a field's default as TOML writes it; "" for none, and for one that the machine decides."""
    value = field.default
    return (
        "" if field.is_required() or field.default_factory or value in (None, "", {}, []) else f"`{json.dumps(value)}`"
    )


def _schemas() -> Iterator[str]:
    yield "# Schemas"
    yield "Which document has which schema: [operations](../operations.md#schemas)."
    rows = ["| Schema | |", "|---|---|"]
    for file in sorted((ROOT / "docs" / "schemas").glob("*.json")):
        schema = json.loads(file.read_text(encoding="utf-8"))
        rows.append(
            f"| [{file.name}](../schemas/{file.name}) | {schema.get('description') or schema.get('title', '')} |"
        )
    yield "\n".join(rows)
