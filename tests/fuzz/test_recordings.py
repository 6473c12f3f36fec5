"""Recordings that somebody has spoilt: whatever stands in a line, the verdict says so, and nothing is raised."""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from coxless.recording import Recorder
from coxless.server import start_server
from coxless_traces.validate_command import validate as command
from coxless_traces.validation import validate

from ..impl.crews import crew_of, in_threads

Spoil = Callable[[list[bytes]], None]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, a failed vote, one that leaves; and what a supervisor might have seen of other processes."""
    folder: Path = tmp_path_factory.mktemp("recorded")
    with pytest.MonkeyPatch.context() as patch, start_server() as server:
        patch.setenv("COXLESS_TRACE", str(folder))

        def body(rank: int) -> None:
            with crew_of(server.address, rank, 2, patience=timedelta(seconds=0.1)) as crew:
                for iteration in crew.iterations():
                    crew.vote(iteration.number != 3)
                    if iteration.number == 5 + rank:
                        return

        in_threads(2, body)
    supervisor = Recorder(folder, "supervisor")
    for what, more in (
        ("started", {}),
        ("exited", {"code": -9}),
        ("marked_dead", {"detail": "0.7-ab"}),
        ("restarted", {"pid": 8}),
    ):
        supervisor.event(what, 0, **{"pid": 7, "code": None, "detail": "", **more})
    assert validate(folder).holds
    return folder


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def another_value(draw: st.DrawFn) -> Spoil:
    """One field of one line says something else, or is gone."""
    line, number, nested, value, gone = draw(st.tuples(st.integers(0), st.integers(0), st.booleans(), values, st.booleans()))

    def spoil(lines: list[bytes]) -> None:
        at = line % len(lines)
        fields = json.loads(lines[at])
        name = sorted(fields)[number % len(fields)]
        inside = fields[name]
        if nested and isinstance(inside, list) and inside:
            inside[number % len(inside)] = value
        elif gone:
            del fields[name]
        else:
            fields[name] = value
        lines[at] = json.dumps(fields).encode() + b"\n"

    return spoil


@st.composite
def other_text(draw: st.DrawFn) -> Spoil:
    """A string somewhere in a line is cut, or has something else in it."""
    line, place, length, text = draw(
        st.tuples(st.integers(0), st.integers(0), st.integers(0, 9), st.text("0123456789.-:oj, ", max_size=4))
    )

    def spoil(lines: list[bytes]) -> None:
        at = line % len(lines)
        place_ = place % len(lines[at])
        lines[at] = lines[at][:place_] + text.encode() + lines[at][place_ + length :].rstrip(b"\n") + b"\n"

    return spoil


@st.composite
def other_bytes(draw: st.DrawFn) -> Spoil:
    """A whole line of anything, in the middle or at the end."""
    line, garbage = draw(st.tuples(st.integers(0), st.binary(max_size=40)))
    return lambda lines: lines.insert(line % (len(lines) + 1), garbage)


def whole_line(text: str) -> Spoil:
    def spoil(lines: list[bytes]) -> None:
        lines[len(lines) // 2] = text.encode() + b"\n"

    return spoil


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(st.integers(0, 2), another_value() | other_text() | other_bytes())
@example(0, whole_line("[" * 100_000))
@example(1, whole_line('{"n":"7","t":"op"}'))
@example(0, whole_line('{"n":1,"t":"op","s":[],"o":"Add","a":["rank_0_incarnation",1],"r":1,"b":1,"e":2}'))
@example(
    0,
    whole_line(
        '{"n":1,"t":"op","s":"sign","o":"Set","a":["global_iteration_barrier:0:arrived","0.1-ab.j,"],"r":null,"b":1,"e":2}'
    ),
)
@example(2, whole_line('{"n":1,"t":"event","what":[],"rank":{},"b":0}'))
@example(2, whole_line('{"n":1,"t":"event","what":"marked_dead","rank":0,"detail":7,"b":0}'))
def test_a_spoilt_recording_gets_a_verdict(recorded: Path, tmp_path: Path, which: int, spoil: Spoil) -> None:
    folder = tmp_path / "spoilt"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(recorded, folder)
    path = sorted(folder.glob("*.jsonl"))[which]
    lines = path.read_bytes().splitlines(keepends=True)
    spoil(lines)
    path.write_bytes(b"".join(lines))
    verdict = validate(folder)
    assert verdict.lines >= 0
    done: Any = CliRunner().invoke(command, [str(folder)])
    assert done.exit_code in (0, 1, 3), done.output
    assert (done.exit_code == 0) == verdict.holds


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(st.from_regex(r"(rank|supervisor)?[0-9a-z.\-]{0,12}\.jsonl", fullmatch=True), st.binary(max_size=60))
@example("rank.jsonl", b"{}\n")
@example("rank0.7.jsonl", b"")
def test_a_file_that_is_nobodys_is_told(recorded: Path, tmp_path: Path, name: str, content: bytes) -> None:
    folder = tmp_path / "more"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(recorded, folder)
    (folder / name).write_bytes(content + b"\n")
    verdict = validate(folder)
    assert not verdict.holds
    assert any(flaw.file == name for flaw in verdict.flaws), verdict.flaws
