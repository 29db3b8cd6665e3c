"""Layers that attend to a window of a sequence among others that attend to all: where they stand in a family's models,
and how configurations of transformers say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from raystage.errors import InputError
from raystage.units import shown

# transformers' names of a layer that attends to all and of one with a window, by those of `ModelShape.kinds`.
LAYER_TYPES = {"f": "full_attention", "s": "sliding_attention"}
KEY = "layer_types"


@dataclass(frozen=True)
class LayerWindows:
    """Which layers attend to all. every: one of so many layers does. is_first: it is the first of these, else the last.
    key: where older configurations have `every`; "" where they have no such key. both_sides: a window is half before a
    token and half behind it."""

    every: int
    is_first: bool = False
    key: str = ""
    both_sides: bool = False

    def kinds(self, num_layers: int, every: int = 0) -> str:
        """By layer: "f" for one that attends to all, "s" for one with a window. every: in place of the family's."""
        every = every or self.every
        place = 0 if self.is_first else every - 1
        return "".join("f" if layer % every == place else "s" for layer in range(num_layers))

    def reach(self, window: int) -> int:
        """How many tokens a token attends to in a layer with such a window, itself among them."""
        return 2 * (window // 2) + 1 if self.both_sides else window

    def num_full(self, num_layers: int) -> int:
        """How many layers attend to all."""
        return (num_layers + (self.every - 1 if self.is_first else 0)) // self.every


def read_kinds(config: Mapping[str, Any], num_layers: int, windows: LayerWindows | None, file: str) -> str:
    """The kinds of a configuration's layers; "" where they are the family's own. Raises InputError."""
    if windows is None:
        return ""
    found = config.get(KEY)
    if found is None:
        every = config.get(windows.key, windows.every)
        if type(every) is not int or every < 1:
            raise InputError(f"found {shown(every)}; expected a whole number from 1 on", key=windows.key, file=file)
        kinds = windows.kinds(num_layers, every)
    else:
        letters = {name: kind for kind, name in LAYER_TYPES.items()}
        if not isinstance(found, list) or len(found) != num_layers or not set(map(str, found)) <= set(letters):
            expected = f"{' or '.join(LAYER_TYPES.values())} for each of {num_layers} layers"
            raise InputError(f"found {shown(found)}; expected {expected}", key=KEY, file=file)
        kinds = "".join(letters[one] for one in found)
    return "" if kinds == windows.kinds(num_layers) else kinds


def write_kinds(grown: dict[str, Any], kinds: str, is_own: bool, windows: LayerWindows | None, layers_key: str) -> None:
    """Make a configuration, in place, one of these kinds of layers. is_own: they are the family's own, so that a
    configuration without a list goes on without one."""
    if windows is not None and not (is_own and grown.get(KEY) is None and windows.key not in grown):
        grown |= {KEY: [LAYER_TYPES[kind] for kind in kinds], layers_key: len(kinds)}
