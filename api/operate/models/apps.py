"""The app of models' settings."""

from django.apps import AppConfig


class ModelSettingsApp(AppConfig):
    """Registers the models below the label `model_settings`."""

    name = "api.operate.models"
    label = "model_settings"
