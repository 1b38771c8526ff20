"""What a responder may do next.

`proposals` are exact commands that a notebook shows and does not run. `action.perform` carries out one of the
actions of the runbook in force, under the rules of docs/operations.md.
"""
