"""Frozen dataclasses with some of their values changed."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def replaced(instance: T, **changes: Any) -> T:
    """The same as `dataclasses.replace`, in a fifth of the time: values are copied and not set one by one.

    For a dataclass without slots whose values nothing is done with when it is made. What the instance has cached is not
    copied. Plans of many trials copy stages a hundred thousand times. Raises TypeError for a field that there is not.
    """
    kind = type(instance)
    fields, values = kind.__dataclass_fields__, instance.__dict__  # type: ignore[attr-defined]
    if not changes.keys() <= fields.keys():
        unknown = ", ".join(sorted(changes.keys() - fields.keys()))
        raise TypeError(f"{kind.__name__} has no field {unknown}")
    copy = object.__new__(kind)
    copy.__dict__.update({name: values[name] for name in fields}, **changes)
    return copy
