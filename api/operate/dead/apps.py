"""The app of the replays of dead letters."""

from django.apps import AppConfig


class Dead(AppConfig):
    """Registers the models below the label `dead`."""

    name = "api.operate.dead"
    label = "dead"
