"""Strangers on the port of a running crew: they cost it no iteration, and the server no memory, no descriptors and no disk."""

import ast
import logging
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

import coxless
from coxless import keys
from coxless.binding import bind
from coxless.output import RotatingFile
from coxless.server import StoreServer, start_server
from coxless.store import embedded_store

from .crews import crew_of, in_threads

pytestmark = pytest.mark.processes

MESSAGES = 10_000
VALIDATE = b"\x00" + (0x3C85F7CE).to_bytes(4, sys.byteorder)
"""What a client says first; without it the server reads and forgets."""


def number(value: int, size: int = 8) -> bytes:
    return value.to_bytes(size, sys.byteorder)


def text(value: bytes) -> bytes:
    return number(len(value)) + value


def message(chance: random.Random) -> bytes:
    """Something that no client of ours sends."""
    command = number(chance.randrange(256), 1)
    match chance.randrange(7):
        case 0:
            return chance.randbytes(chance.randrange(1, 400))
        case 1:
            return VALIDATE + chance.randbytes(chance.randrange(1, 400))
        case 2:  # half a command
            return VALIDATE + number(chance.randrange(1, 12), 1) + text(b"half")[: chance.randrange(12)]
        case 3:  # lengths that there are not
            return VALIDATE + command + number(chance.choice([1 << 63, (1 << 64) - 1, 1 << 40, 9 << 20])) + b"x" * 64
        case 4:  # numbers of keys that there are not
            return VALIDATE + number(chance.choice([5, 4, 10]), 1) + number((1 << 64) - 1) + text(b"k")
        case 5:  # a command in form, on a key that is none of the crew's
            return VALIDATE + number(1, 1) + text(b"stranger") + text(chance.randbytes(30))
        case _:
            return b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Assault(NamedTuple):
    sent: int
    slow: list[socket.socket]


def assault(address: tuple[str, int], *, seed: int = 6) -> Assault:
    """Ten thousand messages: over connections that are closed at once, and some that are left open in the middle of a command."""
    chance = random.Random(seed)
    sent = 0
    slow: list[socket.socket] = []
    while sent < MESSAGES:
        with ExitStack() as stack:
            many = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(50)]
            for one in many:
                for _ in range(5):
                    try:
                        one.sendall(message(chance))
                    except OSError:  # it has hung up
                        break
                    finally:
                        sent += 1
        if len(slow) < 100:
            for _ in range(10):
                loris = socket.create_connection(address, timeout=30)
                loris.sendall(VALIDATE + b"\x01\x03")
                slow.append(loris)
    return Assault(sent, slow)


def crew_goes_on_during(address: str, attack: Callable[[], Assault]) -> Assault:
    """Three ranks advance as long as the attack lasts; nobody is left out, and no iteration is lost."""
    over = threading.Event()
    outcome: list[Assault] = []

    def attacker() -> None:
        try:
            outcome.append(attack())
        finally:
            over.set()

    thread = threading.Thread(target=attacker, daemon=True)

    def body(rank: int) -> list[tuple[int, int]]:
        seen = []
        with crew_of(address, rank, 3) as crew:
            for iteration in crew.iterations():
                seen.append((iteration.number, iteration.world_size))
                if rank == 0 and iteration.number == 1:
                    thread.start()
                # All have to stop at the same one: rank 0 says which, by a word that the others read.
                if rank == 0 and over.is_set() and iteration.number >= 100:
                    last.append(iteration.number + 1)
                    over.clear()
                if last and iteration.number >= last[0]:
                    return seen
        return seen

    last: list[int] = []
    runs = in_threads(3, body)
    thread.join(60)
    longest = max(runs, key=len)
    for run in runs:
        assert run == longest[: len(run)]
    assert [k for k, _ in longest] == list(range(1, len(longest) + 1))
    together = [size for k, size in longest if k < last[0]]
    assert set(together) == {3}, "somebody was left out"
    return outcome[0]


def resident(pid: int) -> int:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def comes_down_to(limit: int, measure: Callable[[], int]) -> None:
    deadline = time.monotonic() + 60
    while (found := measure()) > limit:
        assert time.monotonic() < deadline, f"{found} are left, {limit} were expected"
        time.sleep(0.05)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="looks at the server by /proc, which only Linux has"
)


@needs_proc
@pytest.mark.parametrize("level", ["ERROR", "INFO"])
def test_ten_thousand_hostile_messages_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", level)  # at INFO, torch writes some kilobytes about each of them
    log = tmp_path / "log"
    with start_server(log_file=log) as server:
        before, open_before = resident(server.pid), descriptors(server.pid)
        done = crew_goes_on_during(server.address, lambda: assault((server.host, server.port)))
        assert done.sent >= MESSAGES
        assert resident(server.pid) < before + 200
        for loris in done.slow:
            loris.close()
        comes_down_to(open_before + 10, lambda: descriptors(server.pid))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 9 << 20


@needs_proc
def test_nor_to_the_server_in_rank_0(capfd: pytest.CaptureFixture[str]) -> None:
    code = (
        "import coxless.store, sys\n"
        "store = coxless.store.embedded_store(0, '127.0.0.1', int(sys.argv[1]))\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", code, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        before, open_before = resident(process.pid), descriptors(process.pid)
        done = crew_goes_on_during(f"127.0.0.1:{port}", lambda: assault(("127.0.0.1", port)))
        assert resident(process.pid) < before + 200
        for loris in done.slow:
            loris.close()
        comes_down_to(open_before + 10, lambda: descriptors(process.pid))
        _, err = process.communicate(timeout=60)
    assert len(err) < 10_000  # rank 0's own stderr stays readable, and does not fill up


# --- one address ------------------------------------------------------------------------------------------------------------


def reaches(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), timeout=5):
        return True
    return False


@contextmanager
def embedded(host: str) -> Iterator[int]:
    with bind(host, 0) as free:
        port: int = free.getsockname()[1]
    store = embedded_store(0, host, port)
    yield port
    del store


@contextmanager
def served(host: str) -> Iterator[int]:
    with start_server(host) as server:
        yield server.port


WAYS = {"a process of its own": served, "in rank 0": embedded}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("127.0.0.2", {"127.0.0.2"}),
        ("::1", {"::1"}),
        ("0.0.0.0", {"127.0.0.1", "127.0.0.2"}),
        ("::", {"::1"}),
    ],
)
def test_the_store_listens_where_it_is_told_and_nowhere_else(way: str, host: str, reached: set[str]) -> None:
    if ":" in host:
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 on this machine: {error}")
    with WAYS[way](host) as port:
        assert {address for address in ("127.0.0.1", "127.0.0.2", "::1") if reaches(address, port)} == reached
        address = min(reached)
        client = coxless.connect(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
        assert client.add("n", 1) == 1


@pytest.mark.parametrize(("host", "warned"), [("127.0.0.1", False), ("::1", False), ("0.0.0.0", True), ("::", True)])
def test_the_log_says_when_strangers_may_come(caplog: pytest.LogCaptureFixture, host: str, warned: bool) -> None:
    with caplog.at_level(logging.WARNING, logger="coxless"):
        try:
            bind(host, 0).close()
        except OSError as error:
            pytest.skip(f"no IPv6 on this machine: {error}")
    assert ("whoever reaches it can change everything in it" in caplog.text) == warned


def test_a_crew_on_ipv6() -> None:
    try:
        server = StoreServer("::1")
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with server:
        server.start()

        def body(rank: int) -> int:
            with crew_of(server.address, rank, 2) as crew:
                return [iteration.number for iteration in crew.iterations(until=20)][-1]

        assert in_threads(2, body) == [20, 20]
        assert coxless.connect(server.address).check([keys.REGISTER])


# --- what is kept -----------------------------------------------------------------------------------------------------------


def test_a_log_keeps_what_came_last_and_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = RotatingFile(path, limit=1000)
    for line in range(500):
        log.write(b"%05d\n" % line)
    assert {one.name for one in tmp_path.iterdir()} == {"log", "log.1"}
    kept = (tmp_path / "log.1").read_bytes() + path.read_bytes()
    assert len(kept) <= 2000
    assert kept.split() == [b"%05d" % line for line in range(500 - len(kept) // 6, 500)]
    assert RotatingFile(path, limit=1000)._size == path.stat().st_size


UNSAFE = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}
CALLS = {"eval", "exec", "broadcast_object_list", "all_gather_object", "gather_object", "scatter_object_list", "recv_object_list"}


def test_nothing_in_the_library_unpickles_or_evaluates() -> None:
    root = Path(coxless.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                assert not UNSAFE & {name.name.partition(".")[0] for name in node.names}, where
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").partition(".")[0] not in UNSAFE, where
            if isinstance(node, ast.Call):
                name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                assert name not in CALLS, where
                loads = name == "load" and isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "torch"
                assert not loads or any(
                    k.arg == "weights_only" and getattr(k.value, "value", None) is True for k in node.keywords
                ), where
