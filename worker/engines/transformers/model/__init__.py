"""Loads a model and computes it: the KV cache, its attention, and the runner over both."""
