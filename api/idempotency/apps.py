"""The app of idempotent requests."""

from django.apps import AppConfig


class Kept(AppConfig):
    """Registers the models below the label `kept`."""

    name = "api.idempotency"
    label = "kept"
