"""The app of Web Push subscriptions."""

from django.apps import AppConfig


class Push(AppConfig):
    """Registers the models below the label `push`."""

    name = "api.push"
    label = "push"
