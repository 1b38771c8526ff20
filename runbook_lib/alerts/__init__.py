"""Alerts: received, made durable, investigated, told to people."""
