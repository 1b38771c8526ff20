"""Settings of targets, and one module per server or tool that is read; I/O only."""
