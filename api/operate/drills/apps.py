"""The app of the drills' results."""

from django.apps import AppConfig


class Drills(AppConfig):
    """Registers the models below the label `drills`."""

    name = "api.operate.drills"
    label = "drills"
