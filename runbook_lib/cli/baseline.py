"""The command `runbook archive baseline`: store a target's healthy configuration."""

from __future__ import annotations

import click

from runbook_lib.cli import common
from runbook_lib.privacy.urls import show_url


@click.command()
@common.TARGET
@common.output_option()
@common.lang_option()
def baseline(target: str, output: str) -> int:
    """Store a target's healthy configuration.

    Only if the triage section is OK: later runs name what differs from it.

    Run it from a scheduler. Exit code: that of the section.
    """
    from runbook_lib.book import catalog
    from runbook_lib.dossier import baseline, watch
    from runbook_lib.model.finding import Status, say
    from runbook_lib.model.usage import UsageError
    from runbook_lib.store.archive import OutputError

    section = catalog.load().required_section("triage")
    rb = watch.run_section(section, target=target, incident_id=f"baseline-{target}")
    run = watch.live(rb)
    if run.status is Status.OK:
        if run.configuration is None or run.configuration.empty:
            raise UsageError(f"section {section} of {target} read no configuration: nothing was stored")
        try:
            baseline.keep(output, target, run.configuration, rb.context.as_of)
        except OSError as e:
            raise OutputError(
                f"the configuration could not be stored in {show_url(output)}: {e.strerror or e}"
            ) from None
    key = "compare.kept" if run.status is Status.OK else "compare.not_kept"
    common.echo_text(say(key, section=section, target=target, status=run.status.name))
    return int(run.status.value)
