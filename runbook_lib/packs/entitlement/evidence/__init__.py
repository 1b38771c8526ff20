"""Is the process alive, is its loop? Read from what the services and the database say of it.

`look` functions ask and return frames, `read` functions are pure. "Not seen" is a value of its own here, and never
the same as "is not": what cannot be reached from where the runbook runs says nothing about the service.
"""
