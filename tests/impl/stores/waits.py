"""What tests of waiting share."""

import threading
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import DistStoreError

SOON = timedelta(milliseconds=50)
LONG = timedelta(seconds=60)
PROBE = "?probe?"


def runs_out(error: BaseException) -> bool:
    """Whether it says that a wait's time is over."""
    return isinstance(error, DistStoreError) or (type(error) is RuntimeError and "imeout" in str(error))  # FileStore's


class late:
    """The action happens, in another thread, once the block has begun to wait for it, as far as a moment can tell."""

    def __init__(self, action: Callable[[], object]) -> None:
        self._timer = threading.Timer(0.15, action)

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.join()
