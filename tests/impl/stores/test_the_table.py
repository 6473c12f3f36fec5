"""The table in docs/stores.md promises what is tested: every test that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_table_names_is_there() -> None:
    page = (ROOT / "docs" / "stores.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    there = {
        name
        for path in (ROOT / "tests" / "impl").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 15
    assert named <= there, named - there
    for file in re.findall(r"`(test_\w+\.py)`", page):
        assert list((ROOT / "tests" / "impl").rglob(file))
