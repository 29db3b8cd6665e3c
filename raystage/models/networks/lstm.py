"""`lstm`: residual LSTM layers over tokens (Hochreiter and Schmidhuber, 1997; with a projection, Sak et al.,
1402.1128; residual, as in Wu et al., 1609.08144).

Each layer adds norm, LSTM, projection to `hidden_size` units per token; its LSTM has `ffn_size` cells. All layers have
the same size. It has no positions, so any context length will do.
"""

from __future__ import annotations

import math

import torch
from transformers.modeling_outputs import CausalLMOutput, SequenceClassifierOutput

from raystage.models.build import last_states
from raystage.models.networks.network import Network, RmsNorm, classifier
from raystage.models.shape import ModelShape


class Cells(torch.nn.Module):
    """An LSTM whose weights are its own parameters, not parts of one flat buffer as in `torch.nn.LSTM`, so that ZeRO
    can divide them. Gates lie in torch's order: input, forget, cell, output."""

    def __init__(self, inputs: int, cells: int) -> None:
        super().__init__()
        reach = 1 / math.sqrt(cells)
        self.weight_ih = torch.nn.Parameter(torch.empty(4 * cells, inputs).uniform_(-reach, reach))
        self.weight_hh = torch.nn.Parameter(torch.empty(4 * cells, cells).uniform_(-reach, reach))
        # Gates that forget start open (Jozefowicz et al., 2015).
        starts = torch.tensor([0.0, 1.0, 0.0, 0.0]).repeat_interleave(cells)
        self.bias = torch.nn.Parameter(starts)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """(samples, length, inputs) to (samples, length, cells). Every sample starts with empty cells."""
        empty = stream.new_zeros(1, len(stream), self.weight_hh.shape[1])
        weights = [self.weight_ih, self.weight_hh, self.bias, torch.zeros_like(self.bias)]
        made, *_ = torch.lstm(stream, (empty, empty), weights, True, 1, 0.0, self.training, False, True)
        return made


class LstmBlock(torch.nn.Module):
    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.norm = RmsNorm(shape.hidden_size, shape.norm_eps)
        self.lstm = Cells(shape.hidden_size, shape.ffn_size)
        self.proj = torch.nn.Linear(shape.ffn_size, shape.hidden_size, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream + self.proj(self.lstm(self.norm(stream)))


class Lstm(Network):
    """Called with `input_ids` (samples, length) and, for classes, the `attention_mask` of texts with padding behind.

    Answers with `logits`: (samples, length, vocabulary), or (samples, classes) from the last token.
    """

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(shape.vocab_size, shape.hidden_size)
        torch.nn.init.normal_(self.embed.weight, std=0.02)
        self.layers = torch.nn.ModuleList(LstmBlock(shape) for _ in range(shape.num_layers))
        self.norm = RmsNorm(shape.hidden_size, shape.norm_eps)
        if shape.head == "classes":
            self.classifier = classifier(shape.hidden_size, shape.num_classes)
            return
        self.head = torch.nn.Linear(shape.hidden_size, shape.vocab_size, bias=False)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        if shape.tied_embeddings:
            self.head.weight = self.embed.weight

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, use_cache: bool = False
    ) -> CausalLMOutput | SequenceClassifierOutput:
        states = self.norm(self.through_layers(self.embed(input_ids)))
        if hasattr(self, "classifier"):
            return SequenceClassifierOutput(logits=self.classifier(last_states(states, attention_mask)))
        return CausalLMOutput(logits=self.head(states))


def build(shape: ModelShape) -> Lstm:
    return Lstm(shape)
