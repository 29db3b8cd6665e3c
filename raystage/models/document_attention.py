"""Attention within documents: what is packed into one sequence is computed as if each document stood alone.

A mask over a whole sequence costs memory and time with the square of its length. Here queries, keys and values are
gathered into rows, one for each document, padded on the right to the next power of two; rows of one length are computed
together. So the cost is that of the documents' own lengths, no mask over a sequence is made, and a causal row needs no
mask at all: nothing comes after its padding but padding. Only rows longer than a layer's window need one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

# The attention of every model that is built here. Without `documents` it is that of transformers' "sdpa".
ATTENTION = "raystage"


@dataclass(frozen=True)
class DocumentRows:
    """Where the tokens of a batch of sequences stand in rows of documents.

    rows: for each length of rows int64 of shape (documents, length), places in the flattened batch; the padding repeats
    a document's last token. lengths: for each of them int64 of shape (documents,), without the padding. places: int64
    of shape (tokens of the batch,), where each token stands in all rows, flattened and in a row.
    """

    rows: Sequence[torch.Tensor]
    lengths: Sequence[torch.Tensor]
    places: torch.Tensor

    @property
    def mask(self) -> torch.Tensor:
        """Passed in place of a mask. transformers would make one over whole sequences from the positions; what has four
        dimensions already it passes on as it is."""
        return self.places[None, None, None]


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    documents: DocumentRows | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of a layer, as transformers calls it: tensors of shape (sequences, heads, length, head size).

    attention_mask: without meaning where there are documents; of bool, true where a key is seen. Returns (sequences,
    length, heads, head size).
    """
    compute = sdpa_attention_forward if options.get("softcap") is None else _capped
    if documents is None:
        return compute(module, query, key, value, attention_mask, **options)
    flat = [one.transpose(1, 2).flatten(0, 1) for one in (query, key, value)]
    found = []
    for rows, lengths in zip(documents.rows, documents.lengths, strict=True):
        parts = (one[rows].transpose(1, 2) for one in flat)
        mask = _row_mask(rows.shape[1], lengths, options.get("sliding_window"), getattr(module, "is_causal", True))
        answer, _ = compute(module, *parts, mask, **options)
        found.append(answer.flatten(0, 1))
    return torch.cat(found)[documents.places].unflatten(0, (query.shape[0], query.shape[2])), None


def _row_mask(length: int, lengths: torch.Tensor, window: int | None, is_causal: bool) -> torch.Tensor | None:
    """What is seen in rows of that length, as bool of shape (documents or 1, 1, length or 1, length); None where the
    order of the tokens alone says it.

    lengths: (documents,), without the padding. window: a token sees those nearer than so many tokens.
    """
    places = torch.arange(length, device=lengths.device)
    seen = None if is_causal else (places < lengths[:, None])[:, None, None]
    if window is None or length <= window:
        return seen
    behind = places[:, None] - places
    near = ((behind < window) & (behind >= 0) if is_causal else behind.abs() < window)[None, None]
    return near if seen is None else seen & near


def _capped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    softcap: float,
    scaling: float,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention whose scores are `softcap * tanh(scores / softcap)` (Gemma 2, 2408.00118), with the operations of
    transformers' "eager", and so with its bits. All scores are in memory."""
    groups = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(groups, dim=1) for one in (key, value))
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None and getattr(module, "is_causal", True):
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    shares = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    shares = torch.nn.functional.dropout(shares, p=dropout, training=module.training)
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
