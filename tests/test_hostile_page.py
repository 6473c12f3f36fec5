"""docs/hostile.md names, for each fault, a test that there is."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "hostile.md"
NAME = re.compile(r"`([a-z0-9_/]+\.py)::([a-z0-9_]+)`")


def functions_of(file: Path) -> set[str]:
    return {node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_each_fault_names_a_test_that_there_is() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    for row in rows:
        named = NAME.findall(row.rsplit("|", 2)[1])
        assert named, row
        for file, test in named:
            assert test in functions_of(HERE / file), f"{file}::{test}"
