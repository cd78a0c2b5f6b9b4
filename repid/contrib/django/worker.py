"""The app of each backend in `TASKS`, by its alias: `python -m repid worker repid.contrib.django.worker:default`.

`DJANGO_SETTINGS_MODULE` says which settings; `manage.py repid` does all this by itself.
"""

from __future__ import annotations

import django

from ...app import Repid
from ...errors import ConfigurationError
from .backend import RepidBackend
from .protocol import InvalidTaskBackend, task_backends


def __getattr__(alias: str) -> Repid:
    if alias.startswith("__"):
        raise AttributeError(alias)
    django.setup()
    return find_backend(alias).app


def find_backend(alias: str) -> RepidBackend:
    """The backend of this alias. Raises `ConfigurationError` if `TASKS` has none of repid's under it."""
    try:
        backend = task_backends[alias]
    except InvalidTaskBackend as error:
        raise ConfigurationError(str(error)) from error
    if not isinstance(backend, RepidBackend):
        raise ConfigurationError(f"TASKS[{alias!r}] is no RepidBackend, but {type(backend).__name__}")
    return backend
