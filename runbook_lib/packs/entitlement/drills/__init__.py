"""Game days: incidents made at random; what the runbook says of each, and whether what it proposes helps."""
