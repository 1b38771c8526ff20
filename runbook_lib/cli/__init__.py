"""The `runbook` command."""
