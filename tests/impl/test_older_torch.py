"""torch 2.6 and 2.7, where a store cannot be cloned, a server cannot be given its socket, keys cannot be listed, and a barrier is no command.

Here they are made of the torch that is installed; docs/running.md says what was run on the real ones.
"""

import importlib.metadata
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed import FileStore, HashStore, PrefixStore, Store, TCPStore

from coxless import binding
from coxless.binding import bind, listen
from coxless.client import cloned
from coxless.errors import UnfitStoreError
from coxless.store import refuse_unfit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def without_clone(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Store, TCPStore, HashStore, FileStore, PrefixStore):
        if "clone" in vars(kind):
            monkeypatch.delattr(kind, "clone")


@pytest.fixture
def open_server(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """A server for 127.0.0.1 of a torch that does not take a socket."""
    monkeypatch.setattr(binding, "_torch_version", lambda: "2.6.0+cu124")
    return listen(bind("127.0.0.1", 0), "127.0.0.1")


@pytest.mark.processes
def test_the_demo_keeps_its_promises_on_an_older_torch() -> None:
    demo = [sys.executable, "-m", "examples.digits", "--steps", "60", "--accuracy", "0.1"]  # so few steps teach little
    older = {"PYTHONPATH": str(Path(__file__).parent / "older_torch"), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    run = subprocess.run(demo, env=os.environ | older, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "since torch 2.6.0 cannot do otherwise" in run.stderr


@pytest.mark.parametrize(
    ("version", "takes"),
    [("2.6.0", False), ("2.7.1+cu126", False), ("2.8.0a0+git1234", True), ("2.13.0", True), ("3.0", True)],
)
def test_which_torch_takes_a_socket(monkeypatch: pytest.MonkeyPatch, version: str, takes: bool) -> None:
    monkeypatch.setattr(binding, "_torch_version", lambda: version)
    assert binding.takes_a_socket() == takes


def test_a_torch_that_was_never_installed_tells_its_version_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_found(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", not_found)
    assert binding.takes_a_socket() == (tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 8))


def test_without_a_socket_the_server_listens_everywhere_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(binding, "_torch_version", lambda: "2.6.0+cu124")
    server = listen(bind("127.0.0.1", 0), "127.0.0.1")
    socket.create_connection(("127.0.0.2", server.port)).close()
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "the store listens on every address of this machine, although 127.0.0.1 was asked for, since torch 2.6.0+cu124 cannot do "
        "otherwise (2.8 can)"
    ]


@pytest.mark.usefixtures("without_clone")
def test_another_client_of_each_kind_of_store(open_server: TCPStore, tmp_path: Path) -> None:
    for origin in (open_server, HashStore(), FileStore(str(tmp_path / "store"), -1)):
        other = cloned(origin)
        origin.set("key", "value")
        assert other.get("key") == b"value"
        assert other.timeout == origin.timeout


@pytest.mark.usefixtures("without_clone")
def test_what_cannot_be_cloned_is_refused(open_server: TCPStore) -> None:
    refuse_unfit(open_server)
    with pytest.raises(UnfitStoreError, match="give join the store under it, or its address"):
        refuse_unfit(PrefixStore("p", open_server))


def test_a_server_that_knows_less_than_the_client_is_named(open_server: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs up at a command that it does not know: as here, where a rank is asked to be a word."""

    def unknown(client: TCPStore, *_: object) -> None:
        client.set("rank_0_incarnation", "word")
        client.add("rank_0_incarnation", 1)

    if hasattr(TCPStore, "queue_len"):
        with monkeypatch.context() as patch:
            patch.setattr(TCPStore, "queue_len", unknown)
            with pytest.raises(UnfitStoreError, match=r"or by a torch before 2\.8"):
                refuse_unfit(open_server)
    if hasattr(TCPStore, "barrier"):
        monkeypatch.setattr(TCPStore, "barrier", unknown)
        with pytest.raises(UnfitStoreError, match="was started by an older torch, which has no barrier command"):
            refuse_unfit(open_server)
