"""Game days: random incidents; whether the runbook's verdicts are right, and whether its proposals help."""
