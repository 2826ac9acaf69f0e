"""What a pipeline reports: logs, statistics, traces, Prometheus metrics."""
