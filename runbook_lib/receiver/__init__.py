"""Receive alerts, store them durably, run investigations, and notify people."""
