"""The app of preferences."""

from django.apps import AppConfig


class Preferences(AppConfig):
    """Registers the models below the label `preferences`."""

    name = "api.preferences"
    label = "preferences"
