"""The app of the history."""

from django.apps import AppConfig


class History(AppConfig):
    """Registers the models below the label `history`."""

    name = "api.operate.history"
    label = "history"
