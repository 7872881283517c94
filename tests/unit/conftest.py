"""Fixtures of the API's unit tests (see api_site.py)."""

from tests.unit.api_site import database, fake, live, member, program, staff, user, web

__all__ = ["database", "fake", "live", "member", "program", "staff", "user", "web"]
