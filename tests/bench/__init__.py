"""What the runbook costs a large database, beside what the obvious query and plain papermill cost it."""
