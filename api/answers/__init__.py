"""Stored answers: written, followed, stopped, and taken over from a process that is gone."""
