"""The checks: one module per topic, each step of the runbook answered by exactly one."""

from __future__ import annotations

from runbook_lib.checks import backlog, consistency, database, leases, publish, recovery, response, scope, subscriber
from runbook_lib.checks.check import Check

CHECKS: dict[str, Check] = {
    check.step: check
    for topic in (scope, response, backlog, subscriber, publish, database, leases, consistency, recovery)
    for check in topic.CHECKS
}
"""Every check by its step's id."""
