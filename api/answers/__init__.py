"""Answers that are stored: written, followed, stopped, and taken over from an API process that is gone."""
