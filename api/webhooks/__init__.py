"""Webhooks: signed messages to addresses that users name, which must not be our own network's."""
