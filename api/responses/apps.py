"""The app of stored responses."""

from django.apps import AppConfig


class Responses(AppConfig):
    """Registers the models below the label `responses`."""

    name = "api.responses"
    label = "responses"
