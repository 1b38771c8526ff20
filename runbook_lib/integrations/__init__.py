"""Integrations: Dask, and the port-forwards of kubectl. Loaded by name (`pack`)."""
