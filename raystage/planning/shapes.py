"""The shape of a stage's model, whether the model before it can grow to that shape, and what of it is frozen."""

from __future__ import annotations

from typing import Any

from raystage.config.stage import NOTHING_REQUIRED, Grow, Model
from raystage.data.plan import StageText
from raystage.errors import InputError
from raystage.frozen import replaced
from raystage.growth.checks import changed_fields, exchanges_head, refusal, with_layer_kinds, with_norm_eps
from raystage.growth.operators import is_trained, layer_origins
from raystage.growth.trained import is_masked, stage_refusal
from raystage.models.families import FAMILIES, TRAINED
from raystage.models.shape import ModelShape, head_problem, heads_problem, image_positions
from raystage.models.table import Family
from raystage.objectives.plan import ObjectivePlan
from raystage.planning.draft import Context, StageDraft
from raystage.planning.other_heads import check_limits
from raystage.planning.positions import asked_positions, with_positions
from raystage.planning.shape.images import check_square
from raystage.planning.shape.own_models import OWN_FAMILIES, check_own_keys, resolve_own
from raystage.planning.shape.vocabulary import vocab_size
from raystage.plans.freezing import check_freezing_fits, find_freezing


def fix_shape(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the model's shape. What is not given of its rotary positions and norms' eps comes from the model before."""
    before, model = context.shape_before, draft.stage.model
    if model.family in OWN_FAMILIES:
        return replaced(draft, shape=resolve_own(draft, context.sources, before))
    check_own_keys(model)
    shape = _with_vocabulary(before, resolve_shape(model, draft.data, draft.objective), model)
    shape = with_positions(before, shape, asked_positions(context.schedule, draft.index))
    if before and model.norm_eps is None:
        shape = _with_inherited_eps(before, shape, draft.grow)
    return replaced(draft, shape=_with_inherited_kinds(before, shape, draft.grow) if before else shape)


def check_growth(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: whether the model before can grow to this one as the stage says."""
    before, grow = context.shape_before, draft.grow
    if before is None and grow is not None:
        raise InputError("found in the first stage, which has nothing to grow from; remove it", key="grow")
    if before is not None and grow is None:
        _check_unchanged(before, draft.shape)
    if before is not None and grow is not None:
        _check_grow(before, draft, grow)
        if draft.training.compile and is_masked(grow.operator):
            problem = "found true with operator: masked, whose mask is another one at every step"
            raise InputError(f"{problem}; expected another operator, or false", key="training.compile")
    if before is not None:
        check_limits(before, draft)
    return draft


def fix_freezing(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: the frozen parameters, before the length, which may be in FLOPs. A growth that is impossible is refused
    later."""
    written, before, grow = context.schedule.stages[draft.index], context.shape_before, draft.grow
    if grow is not None and (before is None or refusal(before, draft.shape, grow.operator, grow.options)):
        return draft
    freezing = find_freezing(written.freeze, written.thaw, before, draft.shape, grow)
    return replaced(draft, freezing=freezing) if freezing else draft


def check_freezing(draft: StageDraft, context: Context) -> StageDraft:
    """Pass: whether the freeze fits into the stage. For a growth from `init` also what only a stage before it would
    allow."""
    if draft.freezing is not None:
        check_freezing_fits(draft.freezing, draft.duration, draft.unit)
    if draft.index == 0 and context.init is not None:
        _check_first_growth(draft.grow)
    return draft


# --- the shape --------------------------------------------------------------------------------


def resolve_shape(model: Model, data: StageText, objective: ObjectivePlan) -> ModelShape:
    """The shape of the model as written, with its heads, feed-forward size and vocabulary filled in."""
    family = FAMILIES[model.family]
    for field in _needed(family):
        if getattr(model, field) is None:
            where = "in the file's model section or a stage's: it does not follow from the stage before"
            raise InputError(f"missing; expected a number, {where}", key=f"model.{field}")
    shape = ModelShape(
        family=model.family,
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        **_heads(model),
        ffn_size=model.ffn_size or family.inner_factor * model.hidden_size,
        **(_of_images(model, data) if family.reads_images else _of_text(model, data, objective)),
        **_of_head(data, objective),
        norm_eps=model.norm_eps or family.default_norm_eps,
        **_experts(model),
        **_of_attention(model),
        rope_theta=family.rope_theta,
        local_rope_theta=family.local_rope_theta,
    )
    problem = heads_problem(shape) or head_problem(shape)
    if problem:
        raise InputError(problem[1], key=f"model.{problem[0]}")
    return shape


def _needed(family: Family) -> tuple[str, ...]:
    """The sizes that have no default."""
    heads = ("num_heads",) if family.has_attention else ()
    if not family.reads_images:
        return ("num_layers", "hidden_size", *heads, "context_length")
    return ("num_layers", "hidden_size", *heads, *(("patch_size",) if family.has_attention else ()))


def _heads(model: Model) -> dict[str, int]:
    """The sizes of heads; all 0 in a network without attention."""
    fields = ("num_heads", "num_kv_heads", "head_size")
    if FAMILIES[model.family].has_attention:
        sizes = (model.num_heads, model.num_kv_heads or model.num_heads, _head_size(model))
        return dict(zip(fields, sizes, strict=True))
    for field in fields:
        if getattr(model, field) is not None:
            problem = f"found {getattr(model, field)} for {model.family}, which has no heads; expected none"
            raise InputError(problem, key=f"model.{field}")
    return dict.fromkeys(fields, 0)


def _of_text(model: Model, data: StageText, objective: ObjectivePlan) -> dict[str, Any]:
    """The sizes of a model of tokens."""
    able = ", ".join(name for name in TRAINED if FAMILIES[name].reads_images)
    if data.samples and data.samples.image:
        raise InputError(f"found {model.family} for images; expected {able}", key="model.family")
    if model.patch_size is not None:
        problem = f"found {model.patch_size}, but a {model.family} reads text; expected family: {able}"
        raise InputError(problem, key="model.patch_size")
    tied = FAMILIES[model.family].fields["tied_embeddings"][1]
    return {
        "vocab_size": vocab_size(model, data, objective),
        "context_length": model.context_length,
        "tied_embeddings": tied if model.tied_embeddings is None else model.tied_embeddings,
    }


def _of_images(model: Model, data: StageText) -> dict[str, Any]:
    """The sizes of a model of images: they follow from the data and the patches."""
    image = data.samples.image if data.samples else None
    if image is None:
        raise InputError(f"found {model.family}, which reads images, with texts; expected a source of images",
                         key="model.family")  # fmt: skip
    channels, height, width = image
    patch_size = _patch_size(model, height)
    check_square(height, width)
    for field in ("context_length", "vocab_size", "tied_embeddings"):
        if getattr(model, field) is not None:
            problem = f"found {getattr(model, field)} for a {model.family}; expected none"
            raise InputError(f"{problem}: it follows from the images and patch_size", key=f"model.{field}")
    positions = image_positions(model.family, height, patch_size)
    return {"vocab_size": 0, "context_length": positions, "tied_embeddings": False, "image_size": height,
            "patch_size": patch_size, "num_channels": channels}  # fmt: skip


def _patch_size(model: Model, image_size: int) -> int:
    """As written; a convolution's stride is 1 unless given, and the one patch of an mlp is the image."""
    if model.family != "mlp":
        return model.patch_size or 1
    if model.patch_size not in (None, image_size):
        problem = f"found {model.patch_size} for an mlp, which reads whole images; expected none"
        raise InputError(problem, key="model.patch_size")
    return image_size


def _of_head(data: StageText, objective: ObjectivePlan) -> dict[str, Any]:
    """The head that the objective needs; nothing for a language model's own."""
    head = objective.entry.head
    classes = {"num_classes": data.samples.num_classes} if head == "classes" else {}
    return {"head": head, **classes} if head else {}


def _with_vocabulary(before: ModelShape | None, shape: ModelShape, model: Model) -> ModelShape:
    """With the vocabulary of the model before where that is larger and none is written: an objective may have added a
    token, and tokens are not taken away."""
    if before is None or model.vocab_size is not None or before.vocab_size <= shape.vocab_size or not shape.vocab_size:
        return shape
    return replaced(shape, vocab_size=before.vocab_size)


def _with_inherited_eps(before: ModelShape, shape: ModelShape, grow: Grow | None) -> ModelShape:
    """With the norms' eps of the model before, scaled where a growth pads the residual stream with zeros."""
    if grow is None:
        return replaced(shape, norm_eps=before.norm_eps)
    return with_norm_eps(before, shape, grow.operator)


def _experts(model: Model) -> dict[str, int]:
    """The experts of a mixture; nothing for a dense model."""
    if not FAMILIES[model.family].has_experts:
        for field in ("num_experts", "experts_per_token"):
            if getattr(model, field) is not None:
                able = " or ".join(name for name in TRAINED if FAMILIES[name].has_experts)
                problem = f"found {getattr(model, field)}, but a {model.family} has no experts; expected family: {able}"
                raise InputError(problem, key=f"model.{field}")
        return {}
    if model.num_experts is None:
        raise InputError(f"missing; expected the number of experts of a {model.family}", key="model.num_experts")
    chosen = model.experts_per_token or min(2, model.num_experts)
    if chosen > model.num_experts:
        problem = f"found {chosen}; expected at most num_experts ({model.num_experts})"
        raise InputError(problem, key="model.experts_per_token")
    return {"num_experts": model.num_experts, "experts_per_token": chosen}


def _with_inherited_kinds(before: ModelShape, shape: ModelShape, grow: Grow | None) -> ModelShape:
    """With layers of the kinds that those of the model before have, where some have windows."""
    if before.family != shape.family or FAMILIES[shape.family].windows is None:
        return shape
    if grow is not None:
        return with_layer_kinds(before, shape, grow.operator, grow.options)
    return replaced(shape, layer_kinds=before.layer_kinds) if before.num_layers == shape.num_layers else shape


def _of_attention(model: Model) -> dict[str, int]:
    """The fields of attention that some families have."""
    family, found = FAMILIES[model.family], {}
    for field in ("sliding_window", "query_pre_attn_scalar"):
        asked = getattr(model, field)
        if field in family.fields:
            usual = {"sliding_window": family.fields[field][1], "query_pre_attn_scalar": _head_size(model)}
            found[field] = usual[field] if asked is None else asked
        elif asked is not None:
            able = " or ".join(name for name in TRAINED if field in FAMILIES[name].fields)
            problem = f"found {asked} for a {model.family}, which has none; expected family: {able}"
            raise InputError(problem, key=f"model.{field}")
    return found


def _head_size(model: Model) -> int:
    rotary = FAMILIES[model.family].rotary
    step = round(2 / FAMILIES[model.family].rotary_share) if rotary else 1
    if model.head_size is not None:
        if model.head_size % step:
            able = "an even number" if step == 2 else f"a multiple of {step}"
            problem = f"found {model.head_size}; expected {able}, for rotary positions"
            raise InputError(problem, key="model.head_size")
        return model.head_size
    head_size, left = divmod(model.hidden_size, model.num_heads)
    if left and not rotary:
        problem = f"found {model.hidden_size} for {model.num_heads} heads; expected a multiple of num_heads"
        raise InputError(problem, key="model.hidden_size")
    if left or head_size % step:
        able = "of even size" if step == 2 else f"whose size is a multiple of {step}"
        raise InputError(
            f"found {model.hidden_size} for {model.num_heads} heads; expected a multiple of {step * model.num_heads} "
            f"(rotary positions need heads {able}), or a head_size beside it",
            key="model.hidden_size",
        )
    return head_size


# --- the growth -------------------------------------------------------------------------------


def _check_grow(before: ModelShape, draft: StageDraft, grow: Grow) -> None:
    growth = before, draft.shape, grow.operator, grow.options
    found = refusal(*growth) or stage_refusal(*growth, draft.duration)
    if found:
        field, problem = found
        section = "grow" if field in Grow.model_fields else "model"
        raise InputError(problem, key=f"{section}.{field}")
    if grow.rewarm:
        _check_rewarm(before, draft, grow)


def _check_rewarm(before: ModelShape, draft: StageDraft, grow: Grow) -> None:
    """Refuse a rewarm without new parameters, or one that is longer than the stage."""
    operator, tokens = grow.operator, grow.rewarm.count
    origins = layer_origins(before, draft.shape, operator, grow.options)
    changed = set(changed_fields(before, draft.shape))
    has_new = exchanges_head(before, draft.shape) or any(origin.new for origin in origins)
    if not (changed - {"num_layers"} or has_new or (changed and is_trained(operator))):
        problem = f"found a rewarm, but {operator} makes no new parameters here, only copies with their state"
        raise InputError(f"{problem}; expected none, or another operator", key="grow.rewarm")
    if 2 * tokens > draft.duration:
        problem = f"found {tokens}, which rise and fall over {2 * tokens} tokens in a stage of {draft.duration}"
        raise InputError(f"{problem}; expected at most {draft.duration // 2}", key="grow.rewarm.tokens")


def _check_first_growth(grow: Grow | None) -> None:
    """Refuse what a growth from `init` cannot have, since there is no stage before it: training, a certificate."""
    if grow is not None and is_trained(grow.operator):
        problem = f"found {grow.operator}, which needs training; expected another operator for a growth from init"
        raise InputError(problem, key="grow.operator")
    if grow is not None and grow.require != NOTHING_REQUIRED:
        problem = "found in the first stage, whose growth from init has no certificate; remove it"
        raise InputError(f"{problem} (raystage certify measures one)", key="grow.require")


def _check_unchanged(source: ModelShape, target: ModelShape) -> None:
    """Refuse a stage without grow whose shape is not that of the model before it."""
    changed = changed_fields(source, target)
    if changed == ["num_layers"] and target.num_layers > source.num_layers:
        layers = f"num_layers goes from {source.num_layers} to {target.num_layers}"
        operator = "stack" if source.num_layers else "random"
        raise InputError(f"missing, though {layers}; expected for example grow: {{operator: {operator}}}", key="grow")
    if changed == ["num_layers"] and target.num_layers:
        layers = f"num_layers goes from {source.num_layers} to {target.num_layers}"
        kept = [number * source.num_layers // target.num_layers for number in range(target.num_layers)]
        example = f"grow: {{operator: layers, layers: {kept}}}"
        raise InputError(f"missing, though {layers}; expected which layers stay, for example {example}", key="grow")
    if changed:
        field = changed[0]
        found, before = getattr(target, field), getattr(source, field)
        keeps = "a stage without grow keeps its shape"
        if field == "context_length":  # only where positions are embedded is it part of the shape
            learned = f"a {target.family} learns its positions"
            way = "expected a grow, of any operator" if found > before else f"expected {before} or more"
            keeps = f"{learned}, which can become more but not fewer; {way}"
        raise InputError(f"found {found} after {before}; {keeps}", key=f"model.{field}")
