"""What the documents say: the pack, its catalog, messages, parameters and queries."""
