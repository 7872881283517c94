"""The original endpoint, kept as it was."""
