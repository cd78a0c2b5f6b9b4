"""Flask: views, which block, enqueue jobs and look at their results through `jobs.sync()`. Sync actors run in threads.

To serve it: flask --app flask_app run, and beside it: python -m repid worker flask_app:jobs. Needs: pip install flask

Run it: python examples/flask_app.py
"""

import tempfile
from pathlib import Path

from flask import Flask, request
from flask.typing import ResponseReturnValue

from repid import Connection, Repid, Router, SQLiteServer

jobs = Repid(Connection(SQLiteServer(Path(tempfile.gettempdir()) / "repid-flask-app.db")))
router = Router(queue="reports", store_result=True, retries=3)


@router.actor
def word_count(text: str) -> int:
    return len(text.split())


jobs.include_router(router)
client = jobs.sync()  # opens at its first call; all threads of the process share it
app = Flask(__name__)


@app.post("/reports")
def order() -> ResponseReturnValue:
    return {"id": client.enqueue(word_count, request.form["text"]).id}, 202


@app.get("/reports/<id_>")
def fetch(id_: str) -> ResponseReturnValue:
    handle = client.handle(word_count, id_)
    state = handle.status().state
    if state == "success":
        return {"words": handle.wait().value}
    return {"state": state}, 404 if state == "unknown" else 200


def main() -> None:
    browser = app.test_client()
    id_ = browser.post("/reports", data={"text": "to be or not to be"}).get_json()["id"]
    print("ordered:", browser.get(f"/reports/{id_}").get_json())
    with client.worker():  # in a process of its own, most of the time
        client.handle(word_count, id_).wait(timeout=10)
    print("done:", browser.get(f"/reports/{id_}").get_json())
    print("never ordered:", browser.get("/reports/something-else").status)
    client.close()


if __name__ == "__main__":
    main()
