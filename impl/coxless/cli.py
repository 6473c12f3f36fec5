"""The `coxless` command. `serve` and `run` are here; other parts of the project bring theirs through the entry points "coxless.commands"."""

import importlib.metadata
import re
import shutil
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import supervisor

try:
    import click
except ModuleNotFoundError:
    raise SystemExit("coxless: the command line needs the extra 'cli': pip install 'coxless[cli]'") from None

ENTRY_POINTS = "coxless.commands"

# One line each for `coxless --help`, so that it need not import them (the model and the replay take a second or two).
_SUMMARIES = {
    "check": "Explore the model of the protocol and check its promises.",
    "mutants": "Break the model on purpose; every break must be found.",
    "trace": "Show a trace of the model.",
    "replay": "Replay a trace on a real TCPStore.",
    "cover": "Replay every transition of the model on a real TCPStore.",
    "mapping": "Print what in the model is what in the library.",
    "verify": "Run the large bounds of the model, and print the table.",
    "validate": "Check a recording of a real run against the model.",
}
# Where the name of a distribution is not that of its module.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


class _Commands(click.Group):
    """A group that imports a subcommand only when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_entry_points()})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        entry = _entry_points().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except ModuleNotFoundError as error:
            raise click.ClickException(_missing(cmd_name, error.name or "")) from None
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(name)) for name in self.list_commands(ctx)])

    def _summary(self, name: str) -> str:
        if name in self.commands:
            return self.commands[name].get_short_help_str(80)
        return _SUMMARIES.get(name, "")


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=ENTRY_POINTS)}


def _missing(command: str, module: str) -> str:
    """Which extra brings the module, found in the requirements that the distribution declares."""
    distribution = _DISTRIBUTIONS.get(module.partition(".")[0], module.partition(".")[0]).lower().replace("_", "-")
    extras: dict[str, set[str]] = {}
    for requirement in importlib.metadata.requires("coxless") or ():
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra:
            extras.setdefault(extra.group(1), set()).add(name.group().lower().replace("_", "-"))
    having = [extra for extra, names in extras.items() if distribution in names]
    if having:
        extra_name = min(having, key=lambda extra: len(extras[extra]))  # the one that brings the least besides
        return f"'coxless {command}' needs the extra '{extra_name}': pip install 'coxless[{extra_name}]'"
    return f"'coxless {command}' cannot be loaded: the module {module!r} is not installed"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="coxless", message="%(package)s %(version)s")
def main() -> None:
    """The ranks of a training job agree on which iteration comes next and who takes part in it, with nobody steering."""


@main.command()
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on, and on no other. 0.0.0.0: all of them."
)
@click.option(
    "--port", default=29400, show_default=True, type=click.IntRange(0, 65535), help="0: any free one; the ready line names it."
)
@click.option(
    "--log-file", type=click.Path(dir_okay=False, path_type=Path), help="Where the server's own messages go; else nowhere."
)
def serve(host: str, port: int, log_file: Path | None) -> None:
    """Run the store that a crew shares, until Ctrl-C or SIGTERM.

    When it serves, one line of JSON on stdout says so: {"event": "ready", "host": …, "port": …, "pid": …}. The store knows no
    passwords: whoever reaches the address can change everything in it.
    """
    from . import errors, server

    try:
        server.serve(host, port, log_file=log_file)
    except errors.CoxlessError as error:
        raise click.ClickException(str(error)) from None


@main.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--ranks", "-n", type=click.IntRange(min=1), required=True, help="How many processes to run here.")
@click.option("--first-rank", type=click.IntRange(min=0), default=0, show_default=True, help="Rank of the first of them.")
@click.option("--world-size", type=click.IntRange(min=1), help="Ranks of the whole crew, when others run elsewhere.")
@click.option(
    "--store",
    metavar="ADDRESS",
    envvar="COXLESS_STORE",
    show_envvar=True,
    help="A store that runs already: HOST:PORT ('coxless serve'), etcd://HOST:2379,…/RUN or file:///PATH; else one is started for this run.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the store that is started.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port of the store that is started; 0: any free one.")
@click.option(
    "--restarts", type=click.IntRange(min=0), default=3, show_default=True, help="How often a rank that failed is started again."
)
@click.option(
    "--backoff", type=click.FloatRange(min=0), default=0.5, show_default=True, help="Seconds to the first restart; doubles."
)
@click.option("--grace", type=click.FloatRange(min=0), default=10, show_default=True, help="Seconds from SIGTERM to SIGKILL.")
@click.option("--module", "-m", is_flag=True, help="SCRIPT is the name of a module.")
@click.option("--no-python", is_flag=True, help="SCRIPT is any program, not a Python script.")
@click.option("--quiet", "-q", is_flag=True, help="Say nothing about starts, ends and restarts.")
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    ranks: int,
    first_rank: int,
    world_size: int | None,
    store: str | None,
    host: str,
    port: int,
    restarts: int,
    backoff: float,
    grace: float,
    module: bool,
    no_python: bool,
    quiet: bool,
    script: str,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT as several ranks, and start again those that die.

    Each rank gets the environment that torchrun would give it, and COXLESS_STORE. A rank that dies is marked dead at once, so the others
    go on without waiting for its heartbeat. What the ranks print comes with a prefix: "[rank 2] …".

    \b
    Exit code:
      0    every rank ended with 0
      1    a rank failed for good, or the store was lost
      2    wrong usage, or the run could not be started
      130  stopped by Ctrl-C
      143  stopped by SIGTERM
    """
    # Before torch is imported, which takes seconds.
    if no_python and shutil.which(script) is None:
        raise click.UsageError(f"there is no program {script!r}")
    if not no_python and not module and not Path(script).is_file():
        raise click.UsageError(f"there is no script {script!r} here; to run a module, give -m")
    command = [script, *arguments]
    if not no_python:
        command = [sys.executable, *(["-m"] if module else []), *command]

    from . import errors, supervisor

    try:
        crew = supervisor.Supervisor(
            command,
            ranks=ranks,
            first_rank=first_rank,
            world_size=world_size,
            store=store,
            host=host,
            port=port,
            restart=supervisor.backoff(restarts, first=timedelta(seconds=backoff)),
            max_restarts=restarts,
            on_event=None if quiet else _report,
            grace=timedelta(seconds=grace),
        )
        code = crew.run(handle_signals=True)
    except (errors.CoxlessError, ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    sys.exit(code)


def _report(event: "supervisor.Event") -> None:
    if event.code != 0:  # a good end is told as "finished"
        click.echo(f"[coxless] {event}", err=True)
