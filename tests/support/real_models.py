"""Models with made-up weights, and grown from such, for laws that only a real model can show."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import cache, partial

import numpy as np
import torch
from transformers.models.modernbert import modeling_modernbert

from growths import GrowthCase
from raystage.growth.apply import Grown, Read
from raystage.growth.rules import GrowthMap
from raystage.models.build import build, drawn_weights
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, Parameter, buffers, stored

SEED = 7
BATCH, LENGTH = 4, 10

Values = Mapping[str, np.ndarray]


@cache
def made_up(shape: ModelShape, state: str = "fp32") -> Values:
    """Some fixed float64 numbers for a state of every parameter; gains about 1, second moments not negative."""
    return {one.name: _numbers(one, state) for one in stored(shape)}


def _numbers(parameter: Parameter, state: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(f"{parameter.name}/{state}".encode()).digest()[:4], "little")
    values = np.random.default_rng(seed).normal(scale=0.3, size=parameter.numel)
    if state == "fp32" and parameter.spec.init == "ones":
        values = 1 + values
    is_variance = parameter.spec.is_buffer and parameter.spec.init == "ones"
    return np.abs(values) if state == "exp_avg_sq" or is_variance else values


def reader(values: Callable[[str], Values], dtype: type = np.float64) -> Read:
    """What reads a source whose values of a state are `values(state)`."""
    return lambda name, state, start, stop: values(state)[name][start:stop].astype(dtype)


def grown(case: GrowthCase, policy: str = "grow", dtype: type = np.float64) -> Grown:
    """The case's source, made up, and grown."""
    own = partial(drawn_weights, case.target, SEED)
    return Grown(case.map(policy), reader(lambda state: made_up(case.source, state), dtype), SEED, own)


def whole(rules: GrowthMap, grown_model: Grown, state: str) -> dict[str, np.ndarray]:
    return {rule.target: grown_model.slice(rule.target, state, 0, rule.numel) for rule in rules}


def weights(case: GrowthCase, dtype: type = np.float64) -> dict[str, np.ndarray]:
    return whole(case.map(), grown(case, dtype=dtype), "fp32")


def built(shape: ModelShape, values: Values, dtype: torch.dtype) -> torch.nn.Module:
    """The model with these weights, in evaluation mode: dropout is off."""
    network = build(shape).to(dtype).eval()
    if dtype == torch.float64:
        _compute_in_float64(network)
    with torch.no_grad():
        trained = dict(network.named_parameters())
        for name, one in {**trained, **network.state_dict()}.items():
            if name in trained or name in values:
                one.copy_(torch.from_numpy(values[name]).view(one.shape))
    return network


def _compute_in_float64(network: torch.nn.Module) -> None:
    """transformers computes RMSNorm and the router of a mixture in fp32 whatever the model's dtype, which would hide
    all below 1e-7; and its grouped matrix products of experts know no float64. The same formulas, in float64."""
    modeling_modernbert.apply_rotary_pos_emb = _rotated  # in fp32 the same as transformers' own
    for module in network.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _bound(_gemmas_norm if "Gemma" in type(module).__name__ else _rms_norm, module)
        if hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, dtype=torch.float64)
        if type(module).__name__.endswith("TopKRouter"):
            module.forward = _bound(_route, module)
        if hasattr(module, "config"):
            module.config._experts_implementation = "eager"


def _rotated(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    turned = (one * cos + modeling_modernbert.rotate_half(one) * sin for one in (query, key))
    return tuple(turned)


def _bound(function: Callable, module: torch.nn.Module) -> Callable:
    return lambda inputs: function(module, inputs)


def _rms_norm(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return module.weight * inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)


def _gemmas_norm(module: torch.nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return (1 + module.weight) * inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) + module.eps)


def _route(module: torch.nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = torch.nn.functional.linear(inputs.reshape(-1, module.hidden_dim), module.weight)
    shares, chosen = torch.topk(logits.softmax(-1), module.top_k, dim=-1)
    return logits, shares / shares.sum(-1, keepdim=True), chosen


def padded_batch(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and their mask, (BATCH, LENGTH) each: one sequence padded on the left, one on the right, two whole."""
    tokens = torch.randint(0, vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[0, :3], mask[1, -3:] = 0, 0
    return tokens, mask


def images_of(shape: ModelShape) -> dict[str, torch.Tensor]:
    """Some images as a model of `shape` takes them, a third of their patches hidden where it fills in pixels."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn((BATCH, shape.num_channels, shape.image_size, shape.image_size), generator=generator)
    if shape.head != "pixels" or not FAMILIES[shape.family].has_attention:
        return {"pixel_values": images}
    hidden = torch.rand((BATCH, shape.context_length - 1), generator=generator) < 1 / 3
    return {"pixel_values": images, "bool_masked_pos": hidden}


def logits_for(network: torch.nn.Module, source: ModelShape) -> torch.Tensor:
    """What a model says of a fixed batch that one of shape `source` can read: the scores of the padded batch's real
    tokens, over the source's vocabulary, those of classes, or pixels."""
    if source.image_size:
        return getattr(network(**images_of(source)), FAMILIES[source.family].heads[source.head].output)
    tokens, mask = padded_batch(source.vocab_size)
    logits = network(input_ids=tokens, attention_mask=mask).logits
    return logits if source.head else logits[mask.bool()][:, : source.vocab_size]


def gradients(shape: ModelShape, values: Values, source: ModelShape) -> dict[str, np.ndarray]:
    """The flat float64 gradient of a fixed random projection of `logits_for`, by parameter; zeros for buffers."""
    network = built(shape, values, torch.float64)
    logits = logits_for(network, source)
    projection = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits * projection).sum().backward()
    measured = {one.name: np.zeros(one.numel) for one in buffers(shape)}
    return measured | {
        name: np.zeros(parameter.numel()) if parameter.grad is None else parameter.grad.flatten().numpy()
        for name, parameter in network.named_parameters()
    }


@cache
def source_gradients(shape: ModelShape) -> Values:
    return gradients(shape, made_up(shape), shape)


@cache
def source_logits(shape: ModelShape, dtype: torch.dtype) -> torch.Tensor:
    with torch.no_grad():
        return logits_for(built(shape, made_up(shape), dtype), shape)
