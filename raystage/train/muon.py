"""Muon: matrices of the hidden layers take orthogonal steps, everything else those of AdamW.

The momentum of a matrix is replaced by the nearest orthogonal one, found by a Newton-Schulz iteration (Jordan et al.,
2024, https://kellerjordan.github.io/posts/muon). Its size is that of an update of AdamW, so that both share a learning
rate: 0.2 * sqrt(the longer side) (2502.16982). torch and DeepSpeed have a Muon each. torch's takes only whole matrices;
DeepSpeed's clips after the orthogonal step, and scales it differently. This one works on the flat slices of every ZeRO
stage: workers gather the momenta of a group, and each computes the matrices of which it holds a part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from deepspeed import comm

from raystage.config.training import Optimizer

# Of the quintic iteration: the slope at zero is as large as it can be, and singular values end between 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_EPS = 1e-7
_RMS = 0.2  # of an update of AdamW


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix, or each of a stack of them, with singular values near 1, in its own precision."""
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    found = (matrix.mT if is_tall else matrix).reshape(-1, *sorted(matrix.shape[-2:]))
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    for _ in range(_ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), found, beta=_A)
    return (found.mT if is_tall else found).reshape(matrix.shape)


@dataclass(frozen=True)
class MatrixPlace:
    """Where a matrix is: this worker's slice [start, stop) of it lies at `offset` in a flat tensor. spans: pairs of a
    start and a length in the flat tensors of all workers end to end, which make up the matrix."""

    shape: tuple[int, ...]
    start: int
    stop: int
    offset: int
    spans: tuple[tuple[int, int], ...]


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for the groups marked `is_orthogonal`, AdamW for the others. All workers step together.

    State of an orthogonal tensor: `exp_avg`, the running mean of its gradients, and `step`. Each step gathers a group's
    momenta on every worker: 4 bytes for each of its parameters, of one group at a time.
    """

    def __init__(
        self, groups: Iterable[dict], options: Optimizer, orthogonal: frozenset[str], dtype: torch.dtype
    ) -> None:
        """orthogonal: the names of the parameters in the groups marked. dtype: in which matrices are made
        orthogonal."""
        self.orthogonal, self._dtype = orthogonal, dtype
        self._adamw = torch.optim.AdamW([torch.zeros(0)], lr=options.lr, betas=options.betas, eps=options.eps)
        self._places: Mapping[torch.Tensor, tuple[MatrixPlace, ...]] = {}
        self._world = 1
        super().__init__(groups, {**self._adamw.defaults, "momentum": options.used()["momentum"]})

    def bind(self, places: Mapping[torch.Tensor, tuple[MatrixPlace, ...]], world: int) -> None:
        """places: for the flat tensors that it steps what lies in them; without an entry a tensor is a whole matrix.
        world: the workers that share a matrix."""
        self._places, self._world = places, world

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        groups = self.param_groups
        self._adamw.param_groups = [group for group in groups if not group["is_orthogonal"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in groups:
            for tensor in group["params"] if group["is_orthogonal"] else ():
                if tensor.grad is not None:
                    self._step_orthogonally(tensor, group)

    def _step_orthogonally(self, tensor: torch.Tensor, group: dict) -> None:
        state = self.state[tensor]
        if "step" not in state:
            state["step"], state["exp_avg"] = torch.tensor(0.0), torch.zeros_like(tensor)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(tensor.grad, 1 - group["momentum"])
        update = tensor.grad.lerp(momentum, group["momentum"])  # Nesterov's
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        whole, flat = self._gathered(update.reshape(-1)), tensor.view(-1)
        for place in self._places.get(tensor, (_all_of(tensor),)):
            matrix = torch.cat([whole[start : start + length] for start, length in place.spans]).view(place.shape)
            found = orthogonalized(matrix.to(self._dtype)).to(flat.dtype).reshape(-1)[place.start : place.stop]
            rate = group["lr"] * _RMS * math.sqrt(max(place.shape[-2:]))
            flat[place.offset : place.offset + found.numel()].add_(found, alpha=-rate)

    def _gathered(self, update: torch.Tensor) -> torch.Tensor:
        if self._world == 1:
            return update
        parts = [torch.empty_like(update) for _ in range(self._world)]
        comm.all_gather(parts, update.contiguous())
        return torch.cat(parts)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A parameter as a matrix or a stack of them: of a convolution one row for each channel that it makes."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 3 else shape


def _all_of(tensor: torch.Tensor) -> MatrixPlace:
    return MatrixPlace(matrix_shape(tuple(tensor.shape)), 0, tensor.numel(), 0, ((0, tensor.numel()),))
