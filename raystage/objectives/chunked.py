"""Cross-entropy without the scores of all targets: a head and its loss in one, some targets at a time.

The scores of a micro batch take targets x vocabulary numbers, several times over: with a large vocabulary more than all
layers keep. Here they are made for a chunk of targets, turned into their gradient in the same memory, multiplied into
the gradients of the states and of the head, and forgotten. All of this happens in the forward pass; the backward pass
only multiplies by the gradient of the loss. So nothing is computed twice. (Liger, Hsu et al., 2410.10989, section 3.2.)
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from raystage.lazy import liger
from raystage.objectives.table import CHUNK_TARGETS


def summed_loss_by(
    kernel: str, states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor, chunk: int = CHUNK_TARGETS
) -> torch.Tensor:
    """The sum of -log p(target) over all targets, in nats: fp32 of shape ().

    kernel: "chunked", of torch alone, or "liger", which chooses its chunks by itself. states: what the head reads, of
    shape (targets, hidden).
    """
    if kernel == "chunked" or not len(targets):  # Liger divides by the number of its chunks
        return _SummedLoss.apply(states, head.weight, head.bias, targets, chunk)
    loss = liger.LigerFusedLinearCrossEntropyLoss(reduction="sum", accum_dtype=torch.float32)
    return loss(head.weight, states, targets, head.bias)


@torch.no_grad()
def losses_and_hits(
    states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor, chunk: int = CHUNK_TARGETS
) -> torch.Tensor:
    """Of every target its loss, and 1 where it has the highest score of all: fp32 of shape (targets, 2)."""
    found = torch.empty(len(targets), 2, dtype=_wide(states.dtype), device=states.device)
    for part in _parts(len(targets), chunk):
        scores, right = _scores(states[part], head.weight, head.bias), targets[part]
        found[part, 1] = (scores.argmax(-1) == right).to(found.dtype)
        found[part, 0] = functional.cross_entropy(scores, right, reduction="none")
    return found


class _SummedLoss(torch.autograd.Function):
    """The gradients of the head are summed up over the chunks in fp32, whatever the head computes in."""

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:  # fmt: skip
        wide = _wide(states.dtype)
        needs_states, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        of_states = torch.empty_like(states) if needs_states else None
        of_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else None
        of_bias = torch.zeros_like(bias, dtype=wide) if needs_bias else None
        total = torch.zeros((), dtype=wide, device=states.device)
        for part in _parts(len(targets), chunk):
            scores = _scores(states[part], weight, bias)
            total += _to_slopes(scores, targets[part])
            slopes = scores.to(states.dtype)
            if of_states is not None:
                of_states[part] = slopes @ weight
            if of_weight is not None:
                _add_product(of_weight, slopes, states[part])
            if of_bias is not None:
                of_bias += scores.sum(0)
        ctx.dtypes = states.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.save_for_backward(of_states, of_weight, of_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # In place: a second backward pass is an error in any case, and the head's gradient is large.
        found = [one if one is None else one.mul_(slope).to(dtype)
                 for one, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)]  # fmt: skip
        return (*found, None, None)


def _parts(count: int, chunk: int) -> list[slice]:
    return [slice(start, start + chunk) for start in range(0, count, chunk)]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _scores(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As the head says them, and then in fp32: memory of their own."""
    scores = states @ weight.t() if bias is None else torch.addmm(bias, states, weight.t())
    return scores.to(_wide(scores.dtype))


def _to_slopes(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed loss of scores. In place of the scores stands then its gradient with respect to them."""
    right, highest = targets.unsqueeze(-1), scores.amax(-1, keepdim=True)
    of_right = scores.gather(-1, right) - highest
    sums = scores.sub_(highest).exp_().sum(-1, keepdim=True)
    scores.div_(sums)
    scores.scatter_(-1, right, scores.gather(-1, right) - 1)
    return (sums.log() - of_right).sum()


def _add_product(total: torch.Tensor, slopes: torch.Tensor, states: torch.Tensor) -> None:
    """Add the head's gradient of a chunk. Without a temporary where nothing has to be widened."""
    if total.dtype == slopes.dtype:
        total.addmm_(slopes.t(), states)
    else:
        total += slopes.t() @ states
