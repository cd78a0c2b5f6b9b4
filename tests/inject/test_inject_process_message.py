"""How a message in a process says something to its worker."""

from __future__ import annotations

import pickle
import socket
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from repid import UsageError
from repid.inject.process_message import KEY_LENGTH, LENGTH, VerbCall, Way

KEY = b"k" * KEY_LENGTH
CALL = VerbCall("progress", to_outbox=False, options={}, arguments=(0.5,), keywords={})


def answered(folder: Path, answer: tuple[bool, Any]) -> tuple[Any, bytes]:
    """What one thing that is said returns, and what the worker's side of the socket was sent for it."""
    received = bytearray()
    path = str(folder / "verbs")
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rb") as stream:
                received.extend(stream.read(KEY_LENGTH + LENGTH.size))
                received.extend(stream.read(LENGTH.unpack(received[KEY_LENGTH:])[0]))
                packed = pickle.dumps(answer)
                connection.sendall(LENGTH.pack(len(packed)) + packed)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return Way(path, KEY).say(CALL), bytes(received)
        finally:
            thread.join()


def test_what_is_said_comes_after_the_key_and_its_length_and_the_answer_is_returned(tmp_path: Path) -> None:
    value, received = answered(tmp_path, (False, "heard"))
    assert value == "heard"
    assert received[:KEY_LENGTH] == KEY
    assert pickle.loads(received[KEY_LENGTH + LENGTH.size :]) == CALL


def test_what_the_worker_raised_is_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not so"):
        answered(tmp_path, (True, ValueError("not so")))


def test_a_worker_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be reached any more"):
        Way(str(tmp_path / "nobody"), KEY).say(CALL)
