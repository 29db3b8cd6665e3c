"""Tables of one style, and layouts of which the widest that fits is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Column, Table
from rich.text import Text

STATE_STYLES = {
    "SCHEDULING": "dim", "RUNNING": "cyan", "RESTARTING": "yellow", "ERRORED": "red", "ABORTED": "red",
    "FINISHED": "green", "REUSED": "green", "WAITING": "dim", "NOT_STARTED": "dim", "INTERRUPTED": "yellow",
}  # fmt: skip

MOST_ROWS_OF_RICH = 100  # of a table; a longer one is put together here, with the same look
LINES_OF_A_SEGMENT = 100  # rich takes long for each segment, and for one with very many lines


@dataclass(frozen=True)
class FirstThatFits:
    """The same content in several layouts, widest first. Which one fits is known only when it is printed."""

    layouts: tuple[RenderableType, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for layout in self.layouts[:-1]:
            if Measurement.get(console, options.update(width=10_000), layout).maximum <= options.max_width:
                yield layout
                return
        yield self.layouts[-1]


def table(title: str | None, columns: Iterable[Column]) -> Table:
    """A table without a frame."""
    return Table(
        *columns, title=title, title_justify="left", title_style="bold", header_style="",
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip


def name_column(header: str) -> Column:
    return Column(header, no_wrap=True)


def number_column(header: str) -> Column:
    return Column(header, justify="right", no_wrap=True)


@dataclass(frozen=True)
class _LongTable:
    """What `table` makes of these rows, each a line: rich takes a millisecond and more for every row."""

    title: str | None
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        headers = [str(column.header).split("\n") for column in self.columns]
        height = max(map(len, headers))
        top = list(zip(*([""] * (height - len(one)) + one for one in headers), strict=True))
        widths = [max(map(_width, cells)) for cells in zip(*top, *self.rows, strict=True)]
        whole = sum(widths) + 2 * len(widths) - 1
        if self.title:
            yield from (Segment(f"{self.title:<{whole}}", console.get_style("bold")), Segment.line())
        ruled = (*top, None, *self.rows)
        plain: list[str] = []
        for number, row in enumerate(ruled, 1):
            cells = [f"{'─' * whole}\n"] if row is None else self._line(row, widths, console)
            for cell in cells:
                if isinstance(cell, str):
                    plain.append(cell)
                else:
                    yield from (Segment("".join(plain)), cell)
                    plain = []
            if number % LINES_OF_A_SEGMENT == 0 or number == len(ruled):
                yield Segment("".join(plain))
                plain = []

    def _line(self, row: Sequence[str | Text], widths: Sequence[int], console: Console) -> Iterator[str | Segment]:
        """Text without a style is given as it is: rich takes long for each segment."""
        for place, (column, cell, width) in enumerate(zip(self.columns, row, widths, strict=True)):
            text = str(cell)
            blank = " " * (width - (len(text) if text.isascii() else _width(cell)))
            before, behind = (blank, "") if column.justify == "right" else ("", blank)
            before = f" {before}" if place else before
            if isinstance(cell, Text) and cell.style:
                yield from (before, Segment(text, console.get_style(cell.style)), f"{behind} ")
            else:
                yield f"{before}{text}{behind} "
        yield "\n"


@dataclass(frozen=True)
class WholeTable:
    """A table that never cuts a cell. If it is too wide, it continues in a second table below; if not even two columns
    fit, every row becomes a list of its cells.

    The first column names the rows. totals: the number of rows at the end that are set apart. make: makes a table of
    columns.
    """

    title: str | None
    columns: Sequence[Column]
    rows: Sequence[Sequence[str | Text]]
    totals: int = 0
    make: Callable[[str | None, Iterable[Column]], Table] = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide, widest = options.update(width=10_000), replace(self, rows=self._widest(), totals=0)

        def fits(indices: Sequence[int]) -> bool:
            return Measurement.get(console, wide, widest._table(None, indices)).maximum <= options.max_width

        others = range(1, len(self.columns))
        if not all(fits((0, index)) for index in others):
            yield from self._lists()
            return
        group: list[int] = [0]
        title = self.title
        for index in others:
            if not fits((*group, index)):
                yield self._part(title, group)
                yield ""
                group, title = [0], None
            group.append(index)
        yield self._part(title, group)

    def _widest(self) -> list[list[str | Text]]:
        """A row with the widest cell of every column, in place of all: a table of it is as wide."""
        columns = list(zip(*self.rows, strict=True))
        return [[max(cells, key=_width) for cells in columns]] if columns else []

    def _part(self, title: str | None, indices: Sequence[int]) -> Table | _LongTable:
        columns = [self.columns[index] for index in indices]
        rows = [[row[index] for index in indices] for row in self.rows]
        is_long = len(rows) > MOST_ROWS_OF_RICH and not self.totals and self.make is table
        if is_long and all(_is_one_line(cell) for row in rows for cell in row):
            return _LongTable(title, columns, rows)
        return self._table(title, indices)

    def _table(self, title: str | None, indices: Sequence[int]) -> Table:
        shown = [self.columns[index] for index in indices]
        made = self.make(title, [Column(one.header, justify=one.justify, no_wrap=True) for one in shown])
        for number, row in enumerate(self.rows):
            is_total = number >= len(self.rows) - self.totals
            if is_total and not any(str(row[index]) for index in indices[1:]):
                continue
            if is_total and number == len(self.rows) - self.totals:
                made.add_section()
            made.add_row(*(_as_text(row[index]) for index in indices))
        return made

    def _lists(self) -> RenderResult:
        if self.title:
            yield Text(self.title, style="bold")
        for row in self.rows:
            yield Text.assemble(_as_text(row[0]), style="bold")
            for column, cell in zip(self.columns[1:], row[1:], strict=True):
                yield Text.assemble(f"  {' '.join(str(column.header).split())}: ", _as_text(cell), overflow="fold")


def _width(cell: str | Text) -> int:
    """In cells of a terminal, of the longest line."""
    text = str(cell)
    return len(text) if text.isascii() and text.isprintable() else max(map(cell_len, text.split("\n")))


def _is_one_line(cell: str | Text) -> bool:
    """Whether a cell is shown as it is: in one style, and without control characters."""
    return str(cell).isprintable() and not (isinstance(cell, Text) and cell.spans)


def _as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)
