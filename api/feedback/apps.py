"""The app of feedback."""

from django.apps import AppConfig


class Feedback(AppConfig):
    """Registers the models below the label `feedback`."""

    name = "api.feedback"
    label = "feedback"
