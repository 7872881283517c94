"""The app of batches."""

from django.apps import AppConfig


class Batches(AppConfig):
    """Registers the models below the label `batches`."""

    name = "api.batches"
    label = "batches"
