"""The settings of a Django project for tests. `SHOP_FOLDER` says where its files are."""

import os
from pathlib import Path

FOLDER = Path(os.environ["SHOP_FOLDER"])
SECRET_KEY = "for tests"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "shop.db"}}
INSTALLED_APPS = ["repid.contrib.django"]
TASKS = {
    "default": {
        "BACKEND": "repid.contrib.django.RepidBackend",
        "QUEUES": ["default", "mail"],
        "OPTIONS": {"server": FOLDER / "jobs.db"},
    }
}
