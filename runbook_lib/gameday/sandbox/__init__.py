"""The system under investigation in miniature: real servers, small pods, and faults to practise on.

`Servers` starts PostgreSQL and nats-server for a test; `Sandbox` adds the pods, a past and the faults.
"""
