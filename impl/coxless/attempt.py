"""Doing something that may block for ever, and not waiting for ever.

TCPStore's own timeouts assume a live server: on a stopped one even `clone()` blocks until it resumes. Nothing can end such a call from
outside before it has a socket, so it is made on a thread of its own, and that thread is all that is left of it.
"""

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from .ending import start_in_torch

T = TypeVar("T")


class Attempt(Generic[T]):
    """`action` on a thread of its own, begun at once."""

    def __init__(self, action: Callable[[], T]) -> None:
        self.began = time.monotonic()
        self._action = action
        self._result: T
        self._error: BaseException | None = None
        self._ended = threading.Event()
        start_in_torch(self._run, "coxless-connect")

    def _run(self) -> None:
        try:
            self._result = self._action()
        except BaseException as error:  # noqa: BLE001  (raised in the caller's thread)
            self._error = error
        finally:
            self._ended.set()

    def ended(self, limit: float) -> bool:
        """Wait for the action's end, at most `limit` seconds: whether it has come."""
        return self._ended.wait(max(0.0, limit))

    def result(self) -> T:
        """What the action returned, or raises what it raised. Only once it has ended."""
        if self._error is not None:
            raise self._error
        return self._result
