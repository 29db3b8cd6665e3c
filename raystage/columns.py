"""Tables of one look, and layouts of which the widest that fits is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Column, Table


@dataclass(frozen=True)
class FirstThatFits:
    """The same facts laid out several ways, widest first. Which one fits is known only when it is printed."""

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
