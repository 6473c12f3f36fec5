"""The command line: quick help, clear errors, lazily loaded subcommands."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from coxless import cli


def coxless(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "coxless", *arguments], capture_output=True, text=True, timeout=120)


def test_help_is_readable_and_imports_neither_torch_nor_the_model() -> None:
    code = "import sys; sys.argv = ['coxless', '--help']; from coxless.cli import main; main(standalone_mode=False)\n"
    code += "heavy = {'torch', 'networkx', 'rich', 'coxless_model', 'coxless_traces'} & set(sys.modules); assert not heavy, heavy"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "run       " in ended.stdout or "run  " in ended.stdout
    assert "Run the store that a crew shares" in ended.stdout


@pytest.fixture
def other_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another part of the project had registered two commands, one of which lacks what it needs."""
    entries = [
        importlib.metadata.EntryPoint("greet", "tests.impl.test_cli:greet", cli.ENTRY_POINTS),
        importlib.metadata.EntryPoint("broken", "no_such_module:broken", cli.ENTRY_POINTS),
    ]
    monkeypatch.setattr(cli, "_entry_points", lambda: {entry.name: entry for entry in entries})


@click.command()
def greet() -> None:
    click.echo("hello")


@pytest.mark.usefixtures("other_command")
def test_subcommands_come_from_entry_points() -> None:
    assert "greet" in CliRunner().invoke(cli.main, ["--help"]).output
    assert CliRunner().invoke(cli.main, ["greet"]).output == "hello\n"


@pytest.mark.usefixtures("other_command")
def test_a_subcommand_whose_module_is_missing_does_not_spoil_the_rest() -> None:
    assert CliRunner().invoke(cli.main, ["--help"]).exit_code == 0
    ended = CliRunner().invoke(cli.main, ["broken"])
    assert (ended.exit_code, ended.output) == (
        1, "Error: 'coxless broken' cannot be loaded: the module 'no_such_module' is not installed\n"
    )  # fmt: skip


@pytest.mark.parametrize(("module", "extra"), [("networkx", "model"), ("networkx.algorithms", "model"), ("sklearn", "demo")])
def test_a_missing_extra_is_named(module: str, extra: str) -> None:
    assert cli._missing("check", module) == f"'coxless check' needs the extra '{extra}': pip install 'coxless[{extra}]'"


def test_without_click_the_extra_is_named() -> None:
    code = "import sys; sys.modules['click'] = None; import coxless.cli"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (
        1,
        "coxless: the command line needs the extra 'cli': pip install 'coxless[cli]'\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--ranks", "2", "no-such-script.py"],
            "Error: there is no script 'no-such-script.py' here; to run a module, give -m\n",
        ),
        (["run", "--ranks", "2", "--no-python", "no-such-program"], "Error: there is no program 'no-such-program'\n"),
        (
            ["run", "--ranks", "2", "--store", "nonsense", "{this}"],
            "Error: 'nonsense' is not the address of a store: it has the form",
        ),
        (
            ["run", "--ranks", "2", "--first-rank", "2", "--world-size", "3", "{this}"],
            "Error: world_size is 3: ranks 2 to 3 need at least 4",
        ),
        (["run", "--ranks", "0", "{this}"], "0 is not in the range x>=1"),
        (["run", "--ranks", "2", "--host", "192.0.2.1", "{this}"], "Error: 192.0.2.1 is not an address of this machine"),
        (["run", "--ranks", "2"], "Missing argument 'SCRIPT'"),
        (["row"], "No such command 'row'"),
    ],
)
def test_a_users_mistake_is_one_clear_error(arguments: list[str], message: str) -> None:
    ended = coxless(*(argument.format(this=__file__) for argument in arguments))
    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.processes
def test_run(tmp_path: Path) -> None:
    program = tmp_path / "train.py"
    program.write_text(
        "import os, sys\n"
        "print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'], sys.argv[1:])\n"
        "sys.exit(os.environ['RANK'] == '1' and os.environ['TORCHELASTIC_RESTART_COUNT'] == '0')\n"
    )
    ended = coxless("run", "--ranks", "2", "--backoff", "0", str(program), "--ranks", "x")
    assert ended.returncode == 0, ended.stderr
    arguments = "['--ranks', 'x']"
    assert sorted(ended.stdout.splitlines()) == [
        f"[rank 0] rank 0 of 2 {arguments}",
        f"[rank 1] rank 1 of 2 {arguments}",
        f"[rank 1] rank 1 of 2 {arguments}",
    ]
    assert "[coxless] rank 1 ended with code 1" in ended.stderr
    assert "[coxless] rank 1 started again" in ended.stderr
    ended = coxless("run", "--ranks", "2", "--restarts", "0", "--quiet", str(program))
    assert (ended.returncode, ended.stderr) == (1, "")
