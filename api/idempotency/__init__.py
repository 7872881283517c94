"""Requests with an Idempotency-Key: kept for a day, so that a retry gets the answer that was begun."""
