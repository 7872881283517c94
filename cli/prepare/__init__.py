"""Prepares a fresh machine. Standard library only: it runs before .venv exists."""
