"""The app of files."""

from django.apps import AppConfig


class Files(AppConfig):
    """Registers the models below the label `files`."""

    name = "api.files"
    label = "files"
