"""Proposals and actions for a responder.

`proposals` are exact commands that a notebook shows and does not run. `action.perform` runs an action of the active
runbook under the rules of docs/operations.md.
"""
