"""A model that torch compiles: how it is switched on, what is asked without it, and how often it was compiled.

torch compiles a model again for every way in which it is called: in training, in evaluation, and where shapes differ.
Nothing else should make it do so; the number of graphs in a stage's record shows whether something did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator


class Compiled:
    """The model of an engine, compiled at its first calls through DeepSpeed, in place."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine) -> None:
        # torch compiles a function eight times and no more. Workers stay for many stages, each with its own model.
        torch._dynamo.reset()
        self._before = _graphs()
        engine.compile(backend=get_accelerator().get_compile_backend())

    @property
    def graphs(self) -> int:
        """How many were compiled since."""
        return _graphs() - self._before


def _graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@contextmanager
def uncompiled(network: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Within this the network runs as it is written: compiled code does not call hooks that were added later."""
    compiled, network._compiled_call_impl = network._compiled_call_impl, None
    try:
        yield network
    finally:
        network._compiled_call_impl = compiled
