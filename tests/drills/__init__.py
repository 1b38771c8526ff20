"""Drills: random incidents on the sandbox that measure the runbook. `make drills` and `make knobs` play them."""
