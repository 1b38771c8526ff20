"""`runbook serve`: the receiver of alerts."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import click

from runbook_lib.cli.common import EXECUTOR, FILE, SCHEDULER, echo_text, lang_option, output_option
from runbook_lib.model.finding import say
from runbook_lib.model.usage import UsageError
from runbook_lib.sources import settings


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="the address to listen on")
@click.option("--port", type=click.IntRange(0, 65535), default=9095, show_default=True, help="0 takes a free one")
@output_option("folder or URL for the artifacts")
@click.option(
    "--journal", type=FILE, default="receiver.db", show_default=True, help="database of accepted alerts and their state"
)
@click.option("--tls-cert", type=FILE, help="listen with TLS: the certificate with its chain, PEM")
@click.option("--tls-key", type=FILE, help="the key of the certificate, PEM")
@click.option("--workers", type=click.IntRange(1, 64), help="investigations at once  [default: per core, 2 to 4]")
@EXECUTOR
@SCHEDULER
@lang_option("language of the pages and the artifacts")
def serve(
    host: str,
    port: int,
    output: str,
    journal: Path,
    tls_cert: Path | None,
    tls_key: Path | None,
    workers: int | None,
    executor: str,
    scheduler: str | None,
) -> int:
    """Receive alerts, run their sections, show the incidents.

    Addresses, limits and secrets: docs/operations.md.
    """
    from runbook_lib.runs import forks

    forks.PRELOADED.append(forks.RUNNERS)  # once for all investigations
    forks.context()
    from runbook_lib.runs import quick  # noqa: F401, I001 - before what it makes quick
    from runbook_lib.book import catalog, messages
    from runbook_lib.runs import executors
    from runbook_lib.receiver import auth, notify, routes, server
    from runbook_lib.receiver.journal import Journal
    from runbook_lib.store.archive import Archive

    gc.set_threshold(1_000)  # this process stays: its memory is worth more than a moment
    config = settings.load()
    config.receiver.workers = workers or config.receiver.workers
    messages.use(messages.language())  # also in the threads of the receiver
    output = output if "://" in output else str(Path(output).absolute())  # a Dask worker has its own folder
    place = Archive(output, "").place  # raises UsageError if the output cannot be opened
    routes.check(config, catalog.load())
    places, secrets = notify.urls_by_digest(config), auth.load()
    if bool(tls_cert) != bool(tls_key):
        raise UsageError("--tls-cert and --tls-key belong together")
    tls = server.Tls(tls_cert, tls_key) if tls_cert and tls_key else None
    if tls:
        tls.check()
    if not secrets.needed:
        host = "127.0.0.1"
        echo_text(say("receiver.alone"), err=True)
    try:
        listening = server.listen(host, port)
    except OSError as e:
        raise click.ClickException(f"cannot listen on {host} port {port}: {e.strerror}") from None
    kept, doing = Journal(journal), executors.executor_of(executor, scheduler, config.receiver.workers)
    server.log_to_stderr()
    words = {
        "auth": say("receiver.auth.token" if secrets.needed else "receiver.auth.none"),
        "output": place,
        "journal": journal,
    }
    here = say("receiver.listening", url=server.url(listening, tls), routes=len(config.routes), **words)
    hello = messages.text(here)
    if not server.serve(config, output, secrets, kept, doing, places, listening, tls, hello):
        echo_text(say("receiver.left"), err=True)
        sys.stdout.flush()
        os._exit(0)
    return 0
