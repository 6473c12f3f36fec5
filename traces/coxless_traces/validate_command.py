"""`coxless validate`: whether the model could have done what a run recorded.

Exit codes: 0 admitted (it could), 1 rejected (it could not, or the recording is flawed), 2 the command was wrong, 3 undetermined (the
search gave up, or a part of the run was not recorded: nothing is claimed).
"""

import json
import time
from pathlib import Path

import click

from coxless_model import itf

from .teeth import bites, table
from .validation import Verdict
from .validation import prefix as explained_prefix
from .validation import validate as validate_folder


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--prefix",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the longest explained prefix of a rejected recording is written, as a trace; else FOLDER/prefix.itf.json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--teeth", type=click.IntRange(min=1), metavar="N", help="Change the recording in each of many ways N times: is it rejected?"
)
@click.pass_context
def validate(context: click.Context, folder: Path, prefix: Path | None, as_json: bool, teeth: int | None) -> None:
    """Say whether the model could have done what a run recorded (COXLESS_TRACE=FOLDER)."""
    if teeth is not None and (prefix is not None or as_json):
        raise click.UsageError("--teeth goes with neither --prefix nor --json")
    began = time.perf_counter()
    verdict = validate_folder(folder)
    if teeth is not None:
        if not verdict.holds:
            raise click.UsageError(
                f"--teeth needs a recording that is admitted; this one is {verdict.word}: ask without --teeth why"
            )
        found = list(bites(folder, teeth))
        click.echo(table(found))
        context.exit(int(any(bite.word == "admitted" and not bite.why for bite in found)))
    seconds = time.perf_counter() - began
    written = ""
    trace = explained_prefix(verdict, f"the explained prefix of {folder.name}")
    if trace is not None:
        written = str(prefix or folder / "prefix.itf.json")
        itf.write(Path(written), trace)
    if as_json:
        fields = {name: value for name, value in verdict._asdict().items() if name != "search"}
        fields |= {"verdict": verdict.word, "holds": verdict.holds, "seconds": seconds, "prefix": written}
        click.echo(json.dumps(fields, default=str, indent=1))
    else:
        _show_verdict(verdict, seconds)
        if written:
            click.echo(f"the explained prefix is the trace {written}")
    context.exit(verdict.code)


def _show_verdict(verdict: Verdict, seconds: float) -> None:
    for flaw in verdict.flaws[:10]:
        click.echo(f"{flaw.file}:{flaw.line}: {flaw.what}")
    if len(verdict.flaws) > 10:
        click.echo(f"... and {len(verdict.flaws) - 10} more")
    if verdict.admitted:
        suspected = f", {verdict.wrong_suspicions} wrong suspicions inferred" if verdict.wrong_suspicions else ""
        recorded = " that was recorded" if verdict.undetermined else ""
        how = f"{seconds:.1f} s, {verdict.steps_back} steps back{suspected}"
        click.echo(f"{verdict.explained} lines: the model could have done all of it{recorded} ({how})")
    else:
        click.echo(
            f"{verdict.explained} of {verdict.lines} lines explained ({seconds:.1f} s, {verdict.steps_back} steps back): {verdict.why}"
        )
        if verdict.unexplained is not None:
            click.echo(f"{verdict.unexplained.file}:{verdict.unexplained.line}: {verdict.text}")
            click.echo("the model could have gone on with:")
            for each in verdict.enabled[:12]:
                click.echo(f"  {each}")
    for each in verdict.broken:
        click.echo(f"the run broke {each}")
    if verdict.void:
        click.echo("the store lost what nobody could put back: from there on the properties are not claimed (docs/protocol.md)")
    click.echo(f"verdict: {verdict.word}")
