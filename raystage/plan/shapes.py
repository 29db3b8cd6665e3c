"""The shape of a stage's model as written, with what follows filled in, and what no model can be."""

from __future__ import annotations

from dataclasses import replace

from raystage.config.stage import Grow, Model
from raystage.data.plan import DataPlan, vocabulary_problem
from raystage.errors import InputError
from raystage.growth.checks import with_norm_eps
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, heads_problem


def resolve_shape(model: Model, data: DataPlan) -> ModelShape:
    """The model's shape with what follows filled in: heads, feed-forward size, vocabulary."""
    for field in ("num_layers", "hidden_size", "num_heads", "context_length"):
        if getattr(model, field) is None:
            raise InputError(
                "missing; expected a number, in the file's model section or a stage's", key=f"model.{field}"
            )
    family = FAMILIES[model.family]
    shape = ModelShape(
        family=model.family,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads or model.num_heads,
        head_size=_head_size(model),
        ffn_size=model.ffn_size or 4 * model.hidden_size,
        vocab_size=_vocab_size(model, data),
        context_length=model.context_length,
        tied_embeddings=family.fields["tied_embeddings"][1] if model.tied_embeddings is None else model.tied_embeddings,
        norm_eps=model.norm_eps or family.default_norm_eps,
        **_experts(model),
    )
    problem = heads_problem(shape)
    if problem:
        raise InputError(problem[1], key=f"model.{problem[0]}")
    return shape


def inherited_norm_eps(previous: ModelShape, shape: ModelShape, grow: Grow | None) -> ModelShape:
    """The eps goes along with the model; where a growth pads the residual stream with zeros, scaled as these ask."""
    if grow is None:
        return replace(shape, norm_eps=previous.norm_eps)
    return with_norm_eps(previous, shape, grow.operator)


def _experts(model: Model) -> dict[str, int]:
    """The experts of a mixture; a dense model has none."""
    if not FAMILIES[model.family].has_experts:
        for field in ("num_experts", "experts_per_token"):
            if getattr(model, field) is not None:
                problem = (
                    f"found {getattr(model, field)}, but a {model.family} has no experts; expected family: mixtral"
                )
                raise InputError(problem, key=f"model.{field}")
        return {}
    if model.num_experts is None:
        raise InputError(f"missing; expected the number of experts of a {model.family}", key="model.num_experts")
    chosen = model.experts_per_token or min(2, model.num_experts)
    if chosen > model.num_experts:
        problem = f"found {chosen}; expected at most num_experts ({model.num_experts})"
        raise InputError(problem, key="model.experts_per_token")
    return {"num_experts": model.num_experts, "experts_per_token": chosen}


def _head_size(model: Model) -> int:
    rotary = FAMILIES[model.family].rotary
    if model.head_size is not None:
        if rotary and model.head_size % 2:
            problem = f"found {model.head_size}; expected an even number, for rotary positions"
            raise InputError(problem, key="model.head_size")
        return model.head_size
    head_size, left = divmod(model.hidden_size, model.num_heads)
    if left and not rotary:
        problem = f"found {model.hidden_size} for {model.num_heads} heads; expected a multiple of num_heads"
        raise InputError(problem, key="model.hidden_size")
    if left or (rotary and head_size % 2):
        raise InputError(
            f"found {model.hidden_size} for {model.num_heads} heads; expected a multiple of {2 * model.num_heads} "
            f"(rotary positions need heads of even size), or a head_size beside it",
            key="model.hidden_size",
        )
    return head_size


def _vocab_size(model: Model, data: DataPlan) -> int:
    """As written, else as large as the tokenizer's ids ask for; larger ones are padding."""
    size = data.tokenizer_size
    if model.vocab_size is None:
        if size is None:
            problem = (
                f"missing; expected one more than the largest id of the tokenizer {data.tokenizer!r}, not known here"
            )
            raise InputError(problem, key="model.vocab_size")
        return size
    if size is not None and model.vocab_size < size:
        raise InputError(vocabulary_problem(model.vocab_size, data.tokenizer, size), key="model.vocab_size")
    return model.vocab_size
