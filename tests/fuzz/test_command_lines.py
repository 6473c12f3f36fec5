"""Any arguments of any subcommand: it does something, or says in a sentence what is wrong; never a traceback."""

from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coxless import server, supervisor
from coxless.binding import bind
from coxless.cli import main
from coxless_model import commands as model_commands
from coxless_model import corpus

COSTLY = ("verify", "cover", "mutants")
"""What these do takes minutes: here they only read their arguments."""


def _serve(host: str, port: int, **_: Any) -> None:
    bind(host, port).close()  # and do not wait for a signal


def _interrupted(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def nothing_lasts(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(server, "serve", _serve)
    monkeypatch.setattr(supervisor.Supervisor, "run", lambda *_, **__: 0)
    for name in ("explore", "simulate", "check_liveness"):
        monkeypatch.setattr(model_commands, name, _interrupted)
    monkeypatch.setattr(model_commands, "fault_scenarios", lambda *_, **__: iter(()))
    monkeypatch.setattr(corpus, "entries", lambda: ())
    context = click.Context(main)
    for name in COSTLY:
        command = main.get_command(context, name)
        assert command is not None
        monkeypatch.setattr(command, "callback", lambda *_, **__: None)


def options_of(name: str) -> list[str]:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    return [spelling for parameter in command.params for spelling in parameter.opts if spelling.startswith("-")]


NAMES = main.list_commands(click.Context(main))
words = st.one_of(
    st.sampled_from(
        [
            "0",
            "1",
            "2",
            "-1",
            "hardened",
            "drawn",
            "two-phase-commit",
            "127.0.0.1",
            "file:///x",
            "etcd://h/r",
            "x",
            ".",
            "",
            "nan",
            "é",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
)


@pytest.mark.parametrize("name", NAMES)
@settings(settings.get_profile("ci"), max_examples=60)
@given(data=st.data())
def test_any_arguments_end_in_a_result_or_a_sentence(name: str, data: st.DataObject) -> None:
    given = data.draw(st.lists(st.one_of(st.sampled_from([*options_of(name), "--help"]), words), max_size=6))
    result = CliRunner().invoke(main, [name, *given])
    assert result.exception is None or isinstance(result.exception, SystemExit), (given, result.exception)
    assert result.exit_code in (0, 1, 2, 3), given
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert "Error: " in result.output


@settings(settings.get_profile("ci"), max_examples=40)
@given(st.lists(words, max_size=3))
@example([])
@example(["no-such-command"])
def test_so_it_is_without_a_subcommand(arguments: list[str]) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.exit_code in (0, 1, 2)
