"""Hearing of a signal while the thread that has to handle it is blocked in the store.

Python runs a signal's handler in the main thread, between two of its instructions: with the store stopped, Ctrl-C would wait for the
watchdog's limit. Of the signal itself any thread can hear at once, by the descriptor of `signal.set_wakeup_fd`.
"""

import os
import signal
import socket
import threading


class SignalEar:
    """Deaf until `listen` was called in the main thread, and where somebody else (asyncio) listens already: a signal that finds the main
    thread blocked then waits for the watchdog's limit."""

    def __init__(self) -> None:
        self._pid = 0
        self._read: socket.socket | None = None
        self._write: socket.socket | None = None

    def listen(self) -> None:
        """From any thread; does something in the main thread only, once in each process."""
        if self._pid == os.getpid() or threading.current_thread() is not threading.main_thread():
            return
        self._pid = os.getpid()
        read, write = socket.socketpair()
        read.setblocking(False)
        write.setblocking(False)
        before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        if before != -1 and self._write is None:
            signal.set_wakeup_fd(before)
            return
        self._read, self._write = read, write  # after a fork the former ones are those of the parent

    def heard(self) -> bool:
        """Whether a signal that has a handler in Python has come since the last call."""
        if self._read is None:
            return False
        try:
            return bool(self._read.recv(65536))
        except BlockingIOError:
            return False
