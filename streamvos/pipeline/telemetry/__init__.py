"""What a pipeline tells: logs, statistics, traces, Prometheus metrics."""
