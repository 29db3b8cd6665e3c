"""Output through rich that shows text without its control characters. Nothing slow is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from raystage.safe_text import visible


class SafeConsole(Console):
    """A console that shows markup in text ([red], [link=...]) as text. Only rich itself sends control characters."""

    def __init__(self, file: IO[str] | None = None, stderr: bool = False, **options: Any) -> None:
        super().__init__(file=file, stderr=stderr, markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for one in super().render(renderable, options):
            yield one if one.control or one.text.isprintable() else one._replace(text=visible(one.text))
