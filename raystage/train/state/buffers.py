"""The persistent buffers of a model under training: what its modules measure (the running statistics of a batch norm)
and a checkpoint holds beside the parameters. Models of transformers' decoders and encoders have none.

Every worker holds all of them, and they are the same on all workers between two steps. In a step each micro batch
starts from the values before it. After it they are the mean of what all micro batches of all workers made of them,
weighted by samples. So they depend on how samples are grouped to micro batches, and on nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from deepspeed import comm

from raystage.train.partitions import Partition


def persistent_buffers(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Those that belong to the model's state, by name, as they are now."""
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


class Buffers:
    """Those of one model. Without any, nothing here does anything."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._has_any = any(True for _ in persistent_buffers(model))
        self._before: dict[str, torch.Tensor] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._samples = 0.0

    def begin_step(self) -> None:
        if self._has_any:
            self._before = {name: one.clone() for name, one in persistent_buffers(self._model)}
            self._sums = {name: torch.zeros_like(one, dtype=torch.float64) for name, one in self._before.items()}
            self._samples = 0.0

    def begin_micro_batch(self) -> None:
        if self._has_any:
            for name, one in persistent_buffers(self._model):
                one.copy_(self._before[name])

    def end_micro_batch(self, samples: float) -> None:
        """After the forward pass: activation checkpointing does another one in the backward pass, which does not count.

        samples: 0 for a micro batch that only keeps the workers in step.
        """
        if self._has_any and samples:
            self._samples += samples
            for name, one in persistent_buffers(self._model):
                self._sums[name] += samples * one.double()

    def end_step(self) -> None:
        """Collective. Whole numbers and flags are rounded to such again."""
        if not self._has_any:
            return
        device = next(iter(self._sums.values())).device
        flat = torch.cat([torch.tensor([self._samples], dtype=torch.float64, device=device)]
                         + [one.reshape(-1) for one in self._sums.values()])  # fmt: skip
        comm.all_reduce(flat)
        means = (flat[1:] / flat[0]).split([one.numel() for one in self._sums.values()])
        for (_, one), mean in zip(persistent_buffers(self._model), means, strict=True):
            one.copy_((mean if one.is_floating_point() else mean.round()).view(one.shape))

    def partitions(self) -> list[Partition]:
        """As a checkpoint holds them: copies in fp32, which the first worker writes."""
        found = []
        for name, one in persistent_buffers(self._model):
            flat = one.detach().reshape(-1).to(torch.float32, copy=True)
            saves = (0, flat.numel()) if comm.get_rank() == 0 else (0, 0)
            found.append(Partition(name, 0, flat.numel(), {"fp32": flat}, saves, flat))
        return found

    def fill_from(self, parts: list[Partition]) -> None:
        """Take the values of what `partitions` gave, which was filled meanwhile."""
        for (_, one), part in zip(persistent_buffers(self._model), parts, strict=True):
            one.copy_(part.tensors["fp32"].view(one.shape))
