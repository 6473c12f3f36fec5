"""How a process ends while threads of the library wait for the store: by itself, with the code that it wanted to end with."""

import subprocess
import sys

import pytest

from coxless.server import StoreServer

pytestmark = pytest.mark.processes

# The end of the interpreter is made to last, as it does with a large program, so that the call comes back in the midst of it.
SCRIPT = """
import sys, threading, time
from datetime import timedelta
import coxless
from coxless.attempt import Attempt
from coxless.connection import Connection
store = coxless.connect(sys.argv[1])
waiting = threading.Event()

def wait_at_store():
    waiting.set()
    store_wait()

class Slow:
    def __del__(self):
        time.sleep(2)

{how}
waiting.wait()
time.sleep(0.2)
sys.modules["slow end"] = Slow()
"""
PLAIN = """
client = store.clone()
store_wait = lambda: client.wait(["never"], timedelta(seconds=1.2))
threading.Thread(target=wait_at_store, daemon=True).start()
"""
CONNECTION = """
connection = Connection(store)
store_wait = lambda: connection.wait("never", timedelta(seconds=1.2))
threading.Thread(target=wait_at_store, daemon=True).start()
"""
ATTEMPT = """
client = store.clone()
store_wait = lambda: client.wait(["never"], timedelta(seconds=1.2))
Attempt(wait_at_store)
"""


def end_of(server: StoreServer, how: str) -> int:
    command = [sys.executable, "-c", SCRIPT.replace("{how}", how), server.address]
    return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="threads are no longer ended there")
def test_a_thread_that_comes_back_from_torch_too_late_aborts_the_process(server: StoreServer) -> None:
    """What is guarded against. (SIGABRT; were it gone, coxless.ending could go too.)"""
    assert end_of(server, PLAIN) == -6


@pytest.mark.parametrize("how", [CONNECTION, ATTEMPT], ids=["an operation", "a connection that is being made"])
def test_the_process_ends_well_while_the_library_waits(server: StoreServer, how: str) -> None:
    assert end_of(server, how) == 0
