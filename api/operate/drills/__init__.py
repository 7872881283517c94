"""Drills: a node is killed on purpose, and what became of its jobs is counted."""
