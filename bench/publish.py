"""Put what the benchmarks have printed into docs/benchmarks.md: `python -m bench.publish`, after `make bench` and the others.

Each table of the page stands between `<!-- NAME -->` and `<!-- end -->`; it becomes out/bench/NAME.md, as that benchmark wrote it. So nobody
types a number. What was not measured this time stays as it was.
"""

import re
import shutil
from pathlib import Path

import click

PAGE = Path("docs/benchmarks.md")
TABLE = re.compile(r"<!-- (\w+) -->\n.*?<!-- end -->", re.DOTALL)
PICTURES = ("advance.svg",)


def published(page: str, tables: dict[str, str]) -> str:
    """The page with every table that there is a new one for replaced."""

    def new(match: re.Match[str]) -> str:
        table = tables.get(match[1])
        return match[0] if table is None else f"<!-- {match[1]} -->\n{table.strip()}\n<!-- end -->"

    return TABLE.sub(new, page)


@click.command(help=__doc__)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False, exists=True), default=Path("out/bench"), show_default=True
)
def main(out: Path) -> None:
    tables = {path.stem: path.read_text() for path in out.glob("*.md")}
    PAGE.write_text(published(PAGE.read_text(), tables))
    for name in PICTURES:
        if (out / name).exists():
            shutil.copyfile(out / name, PAGE.parent / name)
    click.echo(f"{PAGE}: {', '.join(sorted(tables))}")


if __name__ == "__main__":
    main()
