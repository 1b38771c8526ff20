"""What tests of packs for other systems share: a database of their own, and what the runbook says of it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from runbook_lib.book import messages
from runbook_lib.checks.check import checks
from runbook_lib.model.finding import Finding, Reason, Status, Verdict
from tests.kit.servers import Servers
from tests.kit.steps import charts_of, open_target, verdict_of, words


@contextmanager
def own_database(embedded: Servers, test: str, schema: str, *readable: str) -> Iterator[tuple[str, str]]:
    """A new database with this schema; its address for its owner, and for the runbook, which reads these schemas."""
    name = re.sub(r"\W", "_", test)[:40] + f"_{os.getpid()}"
    owner_url, reader_url = (f"{u.rsplit('/', 1)[0]}/{name}" for u in (embedded.admin_url, embedded.database_url))
    with psycopg.connect(embedded.admin_url, autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(owner_url, autocommit=True) as owner:
                owner.execute(schema.encode())
                for each in map(sql.Identifier, readable):
                    owner.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO runbook").format(each))
                    owner.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO runbook").format(each))
            yield owner_url, reader_url
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Said:
    """What the runbook says of a moment."""

    verdict: Verdict
    findings: dict[str, Finding]

    @property
    def first(self) -> str | None:
        return next((mode.id for mode in self.verdict.failure_modes), None)

    @property
    def proposed(self) -> list[str]:
        return [p.name for p in self.verdict.proposals]

    def expect(
        self, status: Status | None, stuck_at: str | None, first: str | None = None, proposed: list[str] | None = None
    ) -> None:
        """Hold it against a verdict; a status, a first failure mode and the proposals, where these are given."""
        assert status in (None, self.verdict.status)
        assert self.verdict.stuck_at == stuck_at
        assert first in (None, self.first)
        assert proposed in (None, self.proposed)


def ask_target(target: dict[str, Any], *sections: str) -> Said:
    """What the steps of these sections say together: every text in every language, and the same when judged again."""
    findings: dict[str, Finding] = {}
    for number in sections:
        rb = open_target(number, target)
        for step in rb.section.steps:
            check, given = checks()[step.id], rb.given(step.id)
            found = rb.findings[step.id] = check.run(rb)
            print(step.id, found.status.name, words(found), [messages.text(n, "en") for n in found.notes])
            assert found.reason is not Reason.ERROR or found.unseen, "a judge raised"
            assert not found.frames or check.judge_again(found, given).headline == found.headline
            told = [text for text in (found.headline, *found.notes) if not text.key.startswith("unknown.")]
            for lang in messages.LANGUAGES:
                assert "?" not in "".join(messages.text(text, lang) for text in told)
            charts_of(step.id, found.frames, given)
        findings |= rb.findings
    verdict = verdict_of(*findings.values())
    modes = [(m.id, m.score) for m in verdict.failure_modes]
    said = Said(verdict, findings)
    print(verdict.status.name, verdict.stuck_at, verdict.confidence, verdict.undecided, modes, said.proposed)
    return said
