"""The application for `INSTALLED_APPS`, which brings the command `manage.py repid`."""

from django.apps import AppConfig


class RepidConfig(AppConfig):
    """repid's own place among a project's applications."""

    name = "repid.contrib.django"
    label = "repid"
