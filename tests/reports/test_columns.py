"""Tables that are too wide or too long."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from raystage.reports.columns import MOST_ROWS_OF_RICH, WholeTable, name_column, number_column
from raystage.safe_console import SafeConsole

COLUMNS = (name_column("key"), number_column("tokens\nof all"), number_column("loss"), name_column("runs"))


def shown(table: object, width: int) -> str:
    file = io.StringIO()
    SafeConsole(file=file, width=width, force_terminal=True, color_system="standard").print(table)
    return file.getvalue()


def rows(count: int) -> list[tuple[str | Text, ...]]:
    cells = ("", "a", "1.25", "näher", "日本", "[red]x[/red]", "x" * 17)
    return [
        (f"{number}", *(cells[number * step % len(cells)] for step in (1, 3)), Text("ends", style="green"))
        for number in range(count)
    ]


@pytest.mark.parametrize("width", [200, 40])
def test_a_long_table_looks_like_a_short_one(width: int) -> None:
    """Put together line by line, or by rich with a row more than it may have."""
    own = rows(MOST_ROWS_OF_RICH + 1)
    long = WholeTable("stages", COLUMNS, own)
    control = WholeTable("stages", COLUMNS, [*own[:-1], (*own[-1][:-1], Text.assemble(("ends", "green")))])
    assert shown(long, width) != ""
    assert _lines(shown(long, width)) == _lines(shown(control, width))


def test_control_characters_are_not_shown_in_a_long_table_either() -> None:
    table = WholeTable("stages", COLUMNS, [("a\x1b]0;x\x07", "1", "2", "b")] * (MOST_ROWS_OF_RICH + 1))
    assert "\x1b]" not in shown(table, 100)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]
