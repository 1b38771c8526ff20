"""A target's rules: approvals, signatures, freezes, limits, retention and erasure. Loaded by name (`pack`)."""
