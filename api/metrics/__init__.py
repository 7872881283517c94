"""GET /metrics: what this instance counts, for Prometheus. README.md has the decisions."""
