"""The end of the process: by then no thread of the library may be inside torch.

CPython (before 3.14) ends a daemon thread when it comes back from a call without the interpreter's lock while the interpreter goes down. In torch's C++
frames that is std::terminate ("terminate called without an active exception"): a rank that had finished well would end with SIGABRT. So at exit the
calls in flight are freed, and those that cannot be (a connection that is being made) are waited for, a little.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable

LIMIT = 2.0
"""How long (s) the end of the process may be held up. A call that is stuck for longer most likely stays so until the process is gone."""

_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()
_lock = threading.Lock()


def start_in_torch(target: Callable[[], object], name: str) -> None:
    """Start a daemon thread that may be blocked inside torch when the process ends."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    with _lock:
        _threads.add(thread)
    thread.start()


def at_end(free: Callable[[], object], in_flight: Callable[[], bool]) -> None:
    """At exit call `free`, and then wait until nothing is `in_flight`."""

    def end() -> None:
        deadline = time.monotonic() + LIMIT
        free()
        while in_flight() and time.monotonic() < deadline:
            time.sleep(0.005)

    atexit.register(end)


@atexit.register
def _wait_for_threads() -> None:
    deadline = time.monotonic() + LIMIT
    with _lock:
        threads = list(_threads)
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
