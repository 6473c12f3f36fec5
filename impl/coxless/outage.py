"""What the log says of a store that is away: one line when that is noticed, one when it is back, whatever number of connections is affected."""

import logging
import threading
import time

logger = logging.getLogger(__name__)


class Outage:
    """Shared by the connections of one crew, each of which notices for itself, at a time of its own."""

    def __init__(self, level: int = logging.WARNING) -> None:
        self._level = level
        self._lock = threading.Lock()
        self._since: float | None = None
        self._ended = 0.0

    def noticed(self, where: str, since: float, reason: str) -> None:
        """`where` did not answer what was asked of it at `since` (time.monotonic()). What was asked before the last outage was over
        belongs to that one: a connection that sleeps longest learns of it long after the others have found the store again."""
        with self._lock:
            if self._since is not None or since <= self._ended:
                return
            self._since = since
        logger.log(self._level, "the store at %s is away (%s): waiting for it", where, reason)

    def over(self, where: str) -> None:
        """`where` has answered."""
        with self._lock:
            since, self._since = self._since, None
            if since is None:
                return
            self._ended = time.monotonic()
        logger.log(self._level, "the store at %s is back, after %.1f s", where, self._ended - since)
