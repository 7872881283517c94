"""The accounts app."""

from django.apps import AppConfig


class Accounts(AppConfig):
    """Registers the models below the label `accounts`."""

    name = "api.accounts"
    label = "accounts"
