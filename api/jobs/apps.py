"""The app of stored jobs."""

from django.apps import AppConfig


class Jobs(AppConfig):
    """Registers the models below the label `jobs`."""

    name = "api.jobs"
    label = "jobs"
