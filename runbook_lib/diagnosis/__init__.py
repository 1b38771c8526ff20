"""From findings to a verdict; history, differences and statistics; pure functions."""
