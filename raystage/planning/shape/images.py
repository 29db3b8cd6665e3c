"""The images that models here can read."""

from __future__ import annotations

from raystage.errors import InputError


def check_square(height: int, width: int) -> None:
    """Refuse images whose sides differ: a shape has one size for both. Raises InputError."""
    if height != width:
        problem = f"found images of {height} x {width} pixels; expected square ones, or a resize"
        raise InputError(problem, key="data.resize")
