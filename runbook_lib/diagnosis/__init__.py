"""Statistics and the weighing of evidence for judges; pure functions."""
