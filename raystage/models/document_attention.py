"""Attention within documents: what is packed into one sequence is computed as if each document stood alone.

A mask over a whole sequence costs memory and time with the square of its length. Here queries, keys and values are
gathered into rows, one for each document, padded on the right to the next power of two; rows of one length are computed
together. So the cost is that of the documents' own lengths, no mask over a sequence is made, and a causal row needs no
mask at all: nothing comes after its padding but padding.
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

    attention_mask: without meaning where there are documents. Returns (sequences, length, heads, head size).
    """
    if documents is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    flat = [one.transpose(1, 2).flatten(0, 1) for one in (query, key, value)]
    found = []
    for rows, lengths in zip(documents.rows, documents.lengths, strict=True):
        parts = (one[rows].transpose(1, 2) for one in flat)
        mask = None
        if not getattr(module, "is_causal", True):
            mask = (torch.arange(rows.shape[1], device=rows.device) < lengths[:, None])[:, None, None]
        answer, _ = sdpa_attention_forward(module, *parts, mask, **options)
        found.append(answer.flatten(0, 1))
    return torch.cat(found)[documents.places].unflatten(0, (query.shape[0], query.shape[2])), None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
