"""Labelled texts and images in memory, and small models of transformers that classify and denoise them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers

from raystage.objectives.learner import Arrays, Batch, HeldOut, Judge

CLASSES = ("cat", "dog", "old bird")
WORDS, LONGEST, SIDE, PATCH = 40, 12, 8, 4
VIT = transformers.ViTConfig(
    image_size=SIDE, patch_size=PATCH, num_channels=3, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=32, num_labels=len(CLASSES), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    encoder_stride=PATCH,
)  # fmt: skip
SIZES = {"vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 2, "max_position_embeddings": 64, "num_labels": len(CLASSES)}
CONFIGS = {
    "bert": transformers.BertConfig(**SIZES, **HEADS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    "llama": transformers.LlamaConfig(**SIZES, **HEADS, num_key_value_heads=1, pad_token_id=None),
    "gpt2": transformers.GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=16, n_layer=2, n_head=2, num_labels=len(CLASSES), pad_token_id=None,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    ),
    "mixtral": transformers.MixtralConfig(
        **SIZES, **HEADS, num_key_value_heads=1, num_local_experts=2, num_experts_per_tok=1, pad_token_id=None
    ),
    "qwen3": transformers.Qwen3Config(**SIZES, **HEADS, num_key_value_heads=1, head_dim=8, pad_token_id=None),
}  # fmt: skip


@dataclass(frozen=True)
class Samples:
    """A reader of samples. seed: of the noise."""

    arrays: Arrays
    seed: int = 3

    def read(self, first: int, count: int, length: int) -> Arrays:
        return {name: values[first : first + count] for name, values in self.arrays.items()}


def images(count: int = 24) -> Samples:
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (count, 3, SIDE, SIDE)).astype(np.uint8)
    return Samples({"image": image, "label": random.integers(0, len(CLASSES), count)})


def texts(count: int = 24, fill: int = 0) -> Samples:
    """Of 1 to LONGEST tokens; some end in the token 0. fill: the token that pads them."""
    random = np.random.default_rng(1)
    tokens, sizes = random.integers(0, WORDS, (count, LONGEST)), random.integers(1, LONGEST + 1, count)
    sizes[:2] = 1, LONGEST
    tokens[np.arange(count)[::3], sizes[::3] - 1] = 0
    mask = (np.arange(LONGEST) < sizes[:, None]).astype(np.uint8)
    label = random.integers(0, len(CLASSES), count)
    return Samples({"tokens": np.where(mask, tokens, fill), "mask": mask, "label": label})


def held_out_of(samples: Samples) -> HeldOut:
    return HeldOut(samples.arrays)


def text_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = transformers.AutoModelForSequenceClassification.from_config(CONFIGS[family]).eval()
    if family != "bert":
        network.config.pad_token_id = -1  # no token is padding: the last place of a row is read
    return network


def image_model(kind: str = "classes") -> torch.nn.Module:
    torch.manual_seed(0)
    classes = {"classes": transformers.ViTForImageClassification, "pixels": transformers.ViTForMaskedImageModeling}
    return classes[kind](VIT).eval()


def tensors(judge: Judge, samples: Samples | HeldOut, first: int = 0, count: int = 24) -> Batch:
    return {name: torch.from_numpy(values) for name, values in judge.batch(samples, first, count, 1).items()}
