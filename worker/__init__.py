"""A node's life: start, serve, drain; one job's run; the engines."""
