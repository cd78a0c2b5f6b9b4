"""A backend for Django's tasks (`django.tasks` of Django 6, or the package `django-tasks`). It needs the extra
`django`.

* `backend`: `RepidBackend`, what `TASKS` names. `serving`: where messages wait, by the settings.
* `running`: the actors that run tasks in a worker. `worker`: what the command line runs.
* `records`: what is stored of a task, and how Django sees it.
* `protocol`: the names of Django's protocol, wherever they come from.
"""

from . import protocol  # first: it says what is missing
from .backend import RepidBackend

__all__ = ["RepidBackend", "protocol"]
