"""Approvals, a target's ledger of actions, retention and erasure. Loaded by name (`pack`)."""
