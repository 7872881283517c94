"""The app of the audit log."""

from django.apps import AppConfig


class Audit(AppConfig):
    """Registers the models below the label `audit`."""

    name = "api.operate.audit"
    label = "audit"
