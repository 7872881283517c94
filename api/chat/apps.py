"""The chat app."""

from django.apps import AppConfig


class Chat(AppConfig):
    """Registers the models below the label `chat`."""

    name = "api.chat"
    label = "chat"
