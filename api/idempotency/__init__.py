"""Requests with an Idempotency-Key, stored for a day: a retry gets the same answer."""
