"""The values of a report as text, and the tables that contain them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from raystage.results.report import SavingsPart
from raystage.results.seeds import Interval
from raystage.units import format_count, format_share

# How many digits of a stage's key are shown.
KEY_DIGITS = 12
_NOT_SHOWN = "not shown"


@dataclass(frozen=True)
class Table:
    """Every row has a cell for every column. The first column names the row.

    note: how to read the table. totals: the number of rows at the end that are sums.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    totals: int = 0


def format_loss(loss: float) -> str:
    return f"{loss:.3f}"


def format_perplexity(value: float) -> str:
    """Four digits, like the loss."""
    return f"{value:.4g}"


def length_name(units: Iterable[str]) -> str:
    """The title of a column of lengths: their unit, if they all have the same."""
    names = set(units)
    return names.pop() if len(names) == 1 else "length"


def format_length(duration: int, unit: str, title: str) -> str:
    """A length in a column of that title."""
    return format_count(duration) if title == unit else f"{format_count(duration)} {unit}"


def known(value: Any, as_text: Callable[[Any], str]) -> str:
    """A cell; a dash if the value is not known."""
    return "-" if value is None else as_text(value)


def format_interval(found: Interval, as_text: Callable[[float], str] = format_share) -> str:
    """'27.0 % (20.1 % to 33.9 %)'; if the interval contains zero, only the interval."""
    if found.low is None:
        return as_text(found.mean)
    between = f"{as_text(found.low)} to {as_text(found.high)}"
    return f"{_NOT_SHOWN} ({between})" if found.low <= 0 <= found.high else f"{as_text(found.mean)} ({between})"


def over_seeds(savings: SavingsPart, figure: str, as_text: Callable[[float], str] = format_share) -> str | None:
    """A figure of a report's savings as text. Over several seeds, with its interval; for one seed, with the range that
    the baseline's curve allows between its budgets. None if there is no such figure."""
    over = savings.seeds
    value = getattr(over or savings, figure)
    if value is None:
        return None
    if over:
        return format_interval(value, as_text)
    most = getattr(savings, f"{figure}_at_most", None)
    if most is None or as_text(value) == as_text(most):
        return as_text(value)
    between = f"{as_text(value)} to {as_text(most)}"
    return f"{_NOT_SHOWN} ({between})" if value < 0 < most else between


def format_jump(before: float | None, after: float | None) -> str:
    """The held-out loss before and after a growth: '3.214 -> 3.230'."""
    return f"{known(before, format_loss)} -> {known(after, format_loss)}"


def format_layers(count: int) -> str:
    """'1 layer', '6 layers'."""
    return f"{count} layer{'' if count == 1 else 's'}"


def speed_up(savings: SavingsPart) -> str | None:
    """The speed-up of one seed. None where several seeds or the range of the saving show that it is not certain."""
    saved = over_seeds(savings, "compute_saved")
    if savings.seeds or savings.speedup is None or (saved or "").startswith(_NOT_SHOWN):
        return None
    return format_share(savings.speedup)
