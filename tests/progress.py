"""How far a run of the tests is, in a line now and then: dots say little while drills wait, least of all in a log."""

from __future__ import annotations

import time

import pytest

#: Seconds between two lines.
EVERY_S = 20.0


class Progress:
    """Writes where the dots are written; tests that run elsewhere report to here."""

    def __init__(self, session: pytest.Session, reporter: pytest.TerminalReporter) -> None:
        self._session, self._reporter = session, reporter
        self._began = self._said = time.monotonic()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A line, when it is time for one."""
        now = time.monotonic()
        if now - self._said < EVERY_S:
            return
        self._said = now
        done, total = self._reporter.reported_progress, self._session.testscollected
        minutes, seconds = divmod(int(now - self._began), 60)
        far = f"{done} of {total} tests ({done / total:.0%})"
        self._reporter.write_line(f"\n{minutes:2}:{seconds:02}  {far}, last {nodeid}")


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Report where there is something to report to: a worker has no terminal."""
    if reporter := session.config.pluginmanager.get_plugin("terminalreporter"):
        session.config.pluginmanager.register(Progress(session, reporter))
