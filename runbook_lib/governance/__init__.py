"""Approvals, and a target's ledger of actions. Loaded by name (`pack`)."""
