"""The chat app."""

from django.apps import AppConfig
from django.db.models.signals import post_migrate


class Chat(AppConfig):
    """Registers the models below the label `chat`."""

    name = "api.chat"
    label = "chat"

    def ready(self) -> None:
        """Keeps the index for searches."""
        # Not at import time: the apps are not ready then.
        from api.search.index import ensure_index

        post_migrate.connect(ensure_index, sender=self)
