"""What a cell calls: the session, notes, and helpers for the tests of sections."""
