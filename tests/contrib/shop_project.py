"""Sets a Django project up, once for the process; its tasks can be imported then, as they are from here."""

from __future__ import annotations

import os
import tempfile

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "django_shop.settings"
os.environ.setdefault("SHOP_FOLDER", tempfile.mkdtemp(prefix="django-shop-"))
django.setup()

from django_shop import tasks  # noqa: E402  it needs the settings

__all__ = ["tasks"]
