"""Benchmarks: each a command that starts what it measures, prints a table and can write JSON."""
