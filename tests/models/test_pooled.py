"""A decoder with a head for classes answers at the last real token, wherever that is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from growths import SOURCES, tiny
from raystage.models.build import build, config, last_states, model_class
from raystage.models.families import TRANSFORMERS
from raystage.models.shape import ModelShape

DECODERS = [name for name, family in TRANSFORMERS.items() if family.objective == "next token"]
PAD = 30  # a token that no text has
every_decoder = pytest.mark.parametrize("family", DECODERS)


def of_classes(family: str) -> ModelShape:
    return tiny(family, head="classes", num_classes=5)


def drawn(network: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return network.eval()


def texts() -> list[torch.Tensor]:
    """Of different lengths."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, PAD, (length,), generator=generator) for length in (12, 7, 1, 9)]


def padded(filling: int) -> dict[str, torch.Tensor]:
    """The texts, padded behind, and their mask."""
    found = {"input_ids": torch.full((4, 12), filling), "attention_mask": torch.zeros((4, 12), dtype=torch.uint8)}
    for row, text in enumerate(texts()):
        found["input_ids"][row, : len(text)] = text
        found["attention_mask"][row, : len(text)] = 1
    return found


@every_decoder
def test_it_says_what_transformers_own_class_says(family: str) -> None:
    """Which needs a token for padding that no text has, and finds the last other token."""
    shape = of_classes(family)
    ours = drawn(build(shape))
    settings = config(shape)
    settings.pad_token_id = PAD
    theirs = drawn(model_class(shape)(settings))
    batch = padded(PAD)
    with torch.no_grad():
        torch.testing.assert_close(ours(**batch).logits, theirs(**batch).logits)


@every_decoder
def test_padding_changes_nothing(family: str) -> None:
    """A text alone, without padding, gets the same scores, whichever token the padding is."""
    network = drawn(build(of_classes(family)))
    with torch.no_grad():
        alone = torch.cat([network(input_ids=text[None]).logits for text in texts()])
        for filling in (0, 7, PAD):
            torch.testing.assert_close(network(**padded(filling)).logits, alone)


def test_bert_s_padding_changes_nothing() -> None:
    network = drawn(build(SOURCES["bert classes"]))
    with torch.no_grad():
        alone = torch.cat([network(input_ids=text[None]).logits for text in texts()])
        torch.testing.assert_close(network(**padded(7)).logits, alone)


def test_the_last_position_that_is_not_masked() -> None:
    states = torch.arange(12.0).view(3, 4, 1)
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]])
    assert last_states(states, mask).flatten().tolist() == [1, 7, 8]
    assert last_states(states, None).flatten().tolist() == [3, 7, 11]


def test_images_have_no_language_head() -> None:
    with pytest.raises(ValueError, match="transformers has no language model for ViTConfig"):
        build(replace(SOURCES["vit"], head="", num_classes=0))
    assert type(build(SOURCES["vit pixels"])) is transformers.ViTForMaskedImageModeling
