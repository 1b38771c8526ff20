"""Determine whether a service's process and its loops are alive, from its metrics, its sessions and its log.

`collect` functions query and return frames; `read` and `judge` functions are pure. "Not seen" is a value of its own:
a source that the runbook cannot reach shows nothing about the service.
"""
