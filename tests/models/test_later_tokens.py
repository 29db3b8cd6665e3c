"""A model that learns the next token must not see it: what a plan refuses, and what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from raystage.errors import InputError
from raystage.models.networks.inspection import Wanted, inspect_model

CONVOLUTION = """
from torch import nn


class Net(nn.Module):
    def __init__(self, size, left, right):
        super().__init__()
        self.embed = nn.Embedding(size, 4)
        self.pad = nn.ZeroPad1d((left, right))
        self.layers = nn.ModuleList([nn.Conv1d(4, 4, 3)])
        self.head = nn.Linear(4, size)

    def forward(self, tokens):
        return self.head(self.layers[0](self.pad(self.embed(tokens).mT)).mT)


def make(vocab_size, left, right):
    return Net(vocab_size, left, right)
"""
ELECTRA = {"model_type": "electra", "hidden_size": 16, "embedding_size": 16, "num_attention_heads": 2,
           "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 40}  # fmt: skip
SIZES = {"vocab_size": 40, "context_length": 16, "num_classes": 0, "image_size": 0, "num_channels": 0}


def layers_of(reference: str, options: dict, learns: str = "next token") -> int:
    return inspect_model(Wanted(reference, options, None, {}, (), SIZES, "", learns, 16)).num_layers


def test_a_convolution_with_padding_on_both_sides_sees_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(CONVOLUTION)
    assert layers_of(f"{file}:make", {"left": 2, "right": 0}) == 1
    with pytest.raises(InputError, match=r"change with the tokens after it.*padding on the left only") as caught:
        layers_of(f"{file}:make", {"left": 1, "right": 1})
    assert caught.value.key == "model.build"


def test_an_architecture_of_transformers_may_have_to_be_told_to_be_a_decoder() -> None:
    assert layers_of("", {"config": {**ELECTRA, "is_decoder": True}, "learns": "next token"}) == 2
    assert layers_of("", {"config": ELECTRA, "learns": "masked tokens"}, "masked tokens") == 2
    with pytest.raises(InputError, match=r"change with the tokens after it.*is_decoder: true") as caught:
        layers_of("", {"config": ELECTRA, "learns": "next token"})
    assert caught.value.key == "model.config"
