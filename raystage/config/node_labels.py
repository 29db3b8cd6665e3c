"""Which nodes of a cluster a worker may run on: the type of their GPUs, and selectors of Ray's node labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from raystage.units import shown

# Ray takes labels with the syntax of Kubernetes': up to 63 characters, and before the name a domain and a slash.
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_WORD}(?:\.{_WORD})*/)?{_WORD}")
_SELECTOR = re.compile(rf"(?P<no>!?)(?:in\((?P<values>{_WORD}(?:, ?{_WORD})*)\)|(?P<value>{_WORD}))")
_EXPECTED = "a value, !value, in(one,another) or !in(one,another)"


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, selector in labels.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"found {shown(key)}; expected the name of a label, such as ray.io/market-type")
        if not _SELECTOR.fullmatch(selector):
            raise ValueError(f"found {shown(selector)} for {key}; expected {_EXPECTED}")
    return labels


def _as_labels(value: object) -> object:
    """Numbers become text: what YAML reads as a number is a label all the same."""
    if not isinstance(value, dict):
        raise ValueError(f"found {shown(value)}; expected labels with their values, such as {{zone: a}}")
    return {key: str(one) if isinstance(one, int) and not isinstance(one, bool) else one for key, one in value.items()}


def _check_accelerator(name: str) -> str:
    if not re.fullmatch(_WORD, name):
        raise ValueError(f"found {shown(name)}; expected the name of a GPU type, such as H200")
    return name


NodeLabels = Annotated[dict[str, str], AfterValidator(_check_labels), BeforeValidator(_as_labels)]
AcceleratorType = Annotated[str, AfterValidator(_check_accelerator)]


def has_labels(labels: Mapping[str, str], selectors: Mapping[str, str]) -> bool:
    """Whether a node with these labels satisfies all selectors. As in Ray, a node without a label satisfies `!value`
    and `!in(...)`."""
    return all(_satisfies(labels.get(key), selector) for key, selector in selectors.items())


def _satisfies(label: str | None, selector: str) -> bool:
    found = _SELECTOR.fullmatch(selector)
    values = re.split(", ?", found["values"]) if found["values"] else [found["value"]]
    return (label in values) != bool(found["no"])
