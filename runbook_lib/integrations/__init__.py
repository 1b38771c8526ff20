"""Integrations: Grafana, OpenTelemetry, Nagios, OpenMetrics, Dask, kubectl. Loaded by name (`pack`)."""
