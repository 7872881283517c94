"""The accounts app."""

from django.apps import AppConfig


class Accounts(AppConfig):
    """Registers the models below the label `accounts`."""

    name = "api.accounts"
    label = "accounts"

    def ready(self) -> None:
        """Hears of every login, whichever way."""
        from django.contrib.auth.signals import user_logged_in

        from api.accounts import logins

        user_logged_in.connect(logins.limit_session)
