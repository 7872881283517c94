"""The Django project: see README.md."""
