"""The app of what operators have switched off or on."""

from django.apps import AppConfig


class Line(AppConfig):
    """Registers the models below the label `line`."""

    name = "api.operate.line"
    label = "line"
