"""Django: a project in one file, whose tasks run on repid. Elsewhere this is settings.py, tasks.py and a view.

With a command it is a manage.py: python examples/django_project.py repid worker
Needs: pip install '.[django,cli]'

Run it: python examples/django_project.py
"""

import logging
import sys
import tempfile
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command, execute_from_command_line

settings.configure(
    INSTALLED_APPS=["repid.contrib.django"],
    TASKS={
        "default": {
            "BACKEND": "repid.contrib.django.RepidBackend",
            "OPTIONS": {"server": Path(tempfile.gettempdir()) / "repid-django-project.db"},
        }
    },
)
django.setup()
if django.VERSION >= (6, 0):
    from django.tasks import task
else:
    from django_tasks import task  # type: ignore[no-redef]  # the same, elsewhere


@task
def welcome(address: str) -> str:
    return f"a mail to {address}"


@task
async def charge(order: int) -> None:
    raise ConnectionError(f"no bank for order {order}")


def main() -> None:
    logging.disable()  # workers log each failure; here its traceback would distract
    mail, payment = welcome.enqueue("ada@example.org"), charge.enqueue(7)
    print(mail.status, payment.status)
    call_command("repid", "worker", "--burst")  # another process, most of the time
    mail.refresh()
    print(mail.status, mail.return_value)
    payment.refresh()
    print(payment.status, payment.errors[0].exception_class_path)


if __name__ == "__main__":
    execute_from_command_line(sys.argv) if len(sys.argv) > 1 else main()
