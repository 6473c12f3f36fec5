"""The store server as a process: its address, its ready line, its end."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest

from coxless.binding import AddressError, bind
from coxless.errors import StoreUnreachableError
from coxless.server import StoreServer, start_server
from coxless.store import connect

pytestmark = pytest.mark.processes
PATIENCE = 60


def serve(*options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "coxless", "serve", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ready_line(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    line: dict[str, object] = json.loads(process.stdout.readline())
    return line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_where_it_serves_and_stops_cleanly(number: signal.Signals) -> None:
    with serve("--port", "0") as process:
        ready = ready_line(process)
        assert ready == {"event": "ready", "host": "127.0.0.1", "port": ready["port"], "pid": process.pid}
        store = connect(f"127.0.0.1:{ready['port']}")
        store.set("k", "v")
        assert store.get("k") == b"v"
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out, err) == (0, "", "")


def test_a_client_on_another_address_of_the_machine_is_refused(server: StoreServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port))


def test_a_port_that_is_taken_is_one_clear_error(server: StoreServer) -> None:
    with pytest.raises(AddressError, match=f"port {server.port} of 127.0.0.1 is taken by another process"):
        start_server(port=server.port)
    with serve("--port", str(server.port)) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert out == ""
    assert (
        err == f"Error: port {server.port} of 127.0.0.1 is taken by another process; give another port, or 0 for any free one\n"
    )


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "is not an address of this machine"),
        ("2001:db8::1", "is not an address of this machine"),
        ("no-such-host.invalid", "is neither an IP address nor a name that has one"),
    ],
)
def test_an_address_that_cannot_be_had_is_one_clear_error(host: str, reason: str) -> None:
    with pytest.raises(AddressError, match=f"{re.escape(host)}'? {reason}"):
        start_server(host)


def test_a_log_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with serve("--port", "0", "--log-file", str(tmp_path / "none" / "log")) as process:
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert err == f"Error: cannot write the log file {tmp_path / 'none' / 'log'}: No such file or directory\n"


def test_odd_clients_do_not_freeze_it_through_its_stderr() -> None:
    """Each makes it write a stack trace of some kilobytes; this parent drains no pipe."""
    with serve("--port", "0") as process:
        port = ready_line(process)["port"]
        assert isinstance(port, int)
        store = connect(f"127.0.0.1:{port}")
        magic = b"\x00" + (0x3C85F7CE).to_bytes(4, sys.byteorder)  # VALIDATE, then a command that does not exist
        for _ in range(50):
            with socket.create_connection(("127.0.0.1", port)) as odd:
                odd.sendall(magic + b"\xee" * 64)
                odd.settimeout(PATIENCE)
                with contextlib.suppress(ConnectionResetError):
                    assert odd.recv(1) == b""
        assert store.add("n", 1) == 1
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0


def test_it_can_be_killed_and_started_again_on_its_port() -> None:
    with start_server() as server:
        port, pid = server.port, server.pid
        connect(server.address).set("k", "v")
        server.kill()
        assert not server.running
        server.start()
        assert (server.port, server.running) == (port, True)
        assert server.pid != pid
        assert not connect(server.address).check(["k"])  # empty


def test_the_port_of_a_dead_server_stays_reserved() -> None:
    with start_server() as server:
        server.kill()
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", server.port))
    with bind("127.0.0.1", server.port):  # and is given back at the end
        pass


def test_it_ends_with_its_block() -> None:
    with start_server() as server:
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_server_can_be_stopped() -> None:
    with start_server() as server:
        os.kill(server.pid, signal.SIGSTOP)
    assert not server.running


def test_it_dies_with_its_parent() -> None:
    code = "from coxless.server import start_server; s = start_server(); print(s.pid, s.port, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid, port = map(int, parent.stdout.readline().split())
        connection = socket.create_connection(("127.0.0.1", port))
        parent.kill()
    with connection:
        connection.settimeout(PATIENCE)
        assert connection.recv(1) == b""  # closed by the end of the server
    wait_until_gone(pid)


def wait_until_gone(pid: int) -> None:
    """It is not our child: look until there is no such process, or only a zombie of whoever adopted it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        threading.Event().wait(0.02)
    pytest.fail(f"process {pid} is still there")


def test_a_server_that_does_not_get_ready_is_given_up() -> None:
    with pytest.raises(StoreUnreachableError, match=r"was not ready within 0.001 s"):
        start_server(timeout=timedelta(milliseconds=1))
