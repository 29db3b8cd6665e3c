"""`raystage certify`: compare two whole models on one CPU, of which the second is said to be grown from the first.

Any tool may have grown it: the measurement needs only the two models. If the target says how it was grown (as `raystage
grow` writes it), the predictions of that growth map are checked as well.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

from raystage.data.tokenizers import ByteTokenizer
from raystage.errors import InputError
from raystage.files.reading import uri_in
from raystage.growth.certificate import (
    Answers,
    Where,
    ask,
    gradient_errors,
    logit_differences,
    masked_loss,
    mean_loss,
    rms_ratios,
    where_large,
    where_predicted,
)
from raystage.growth.depth import GrowthOptions, interleave
from raystage.growth.duplicates import DUPLICATE_STEPS, Sample, duplicate_distance, find_duplicates
from raystage.growth.explain import Families, head_in_words, layer_sources
from raystage.growth.operators import OPERATORS, operators_of
from raystage.growth.rules import GrowthMap, exact_in, growth_map
from raystage.models.build import build
from raystage.models.families import FAMILIES
from raystage.models.hf_config import architecture_of
from raystage.models.shape import parameters
from raystage.results.record import Certificate
from raystage.tools.grow import Source
from raystage.units import first_line, shown

BATCH, LENGTH = 4, 64
_LR = 1e-3
_PIECE = 2**22


@dataclass(frozen=True)
class Inputs:
    """ids, mask: (batch, length). The last row ends in padding, where the mask is 0."""

    ids: np.ndarray
    mask: np.ndarray
    vocab_size: int


@dataclass(frozen=True)
class _Claim:
    """How the target says it was grown. embeddings: names of the embedding parameters."""

    rules: GrowthMap
    layers: tuple[int | None, ...]
    embeddings: frozenset[str]
    exact: bool | None


def certify(source: Source, target: Source, text: bytes | None = None) -> dict[str, Any]:
    """The certificate of a growth from `source` to `target`, for --json. Raises InputError.

    text: bytes to run the models on, instead of random tokens.
    """
    began = time.monotonic()
    for one in (source, target):
        _check_language(one)
    inputs = make_inputs(source, target, text)
    grown_from = _grown_from(target)
    network = load(source)
    before = _answers(network, source, inputs, where_large)
    claim = _claim(source, target, grown_from, network)
    network = load(target)
    where = where_predicted(claim.rules, before.gradients) if claim else where_large
    after = _answers(network, target, inputs, where)
    exact, estimated = gradient_errors(claim.rules, before.gradients, after.gradients) if claim else (None, None)
    distance, steps = _duplicates(network, target, inputs, claim)
    largest, mean = logit_differences(before.logits, after.logits, inputs.mask)
    certificate = Certificate(
        eval_loss_before=mean_loss(before.logits, inputs.ids, inputs.mask, _is_causal(source)),
        eval_loss_after=mean_loss(after.logits, inputs.ids, inputs.mask, _is_causal(target)),
        max_logit_difference=largest,
        mean_logit_difference=mean,
        activation_rms_ratio=rms_ratios(before.activation_rms, after.activation_rms, _layers(source, target, claim)),
        gradient_error=exact,
        gradient_error_estimated=estimated,
        moment_norms=_moment_norms(source, target),
        twin_distance=distance,
        twin_steps=steps,
        exact=claim.exact if claim else None,
    )
    return {
        "source": source.uri,
        "target": target.uri,
        "operator": grown_from["operator"] if claim else None,
        "exact": certificate.exact,
        "exact_in": exact_in(claim.rules) if claim and claim.exact else None,
        "seconds": time.monotonic() - began,
        "certificate": {field.name: getattr(certificate, field.name) for field in fields(certificate)},
    }


# --- inputs -------------------------------------------------------------------------------------


def make_inputs(source: Source, target: Source, text: bytes | None) -> Inputs:
    """Equal sizes give equal inputs, whatever the models are. Raises InputError if the text does not fit."""
    vocab_size = min(source.shape.vocab_size, target.shape.vocab_size)
    length = min(LENGTH, source.shape.context_length, target.shape.context_length)
    if text is None:
        ids = np.random.default_rng(0).integers(vocab_size, size=(BATCH, length))
    else:
        ids = _text_ids(text, vocab_size, length)
    mask = np.ones_like(ids)
    mask[-1, length - length // 4 :] = 0
    return Inputs(ids, mask, vocab_size)


def _text_ids(text: bytes, vocab_size: int, length: int) -> np.ndarray:
    tokenizer = ByteTokenizer()
    if vocab_size != tokenizer.size:
        found = f"found a vocabulary of {vocab_size}"
        raise InputError(f"{found}; expected {tokenizer.size}, whose tokens are bytes, or no text", key="--text")
    ids = tokenizer.encode(text).astype(np.int64)
    if len(ids) < BATCH * length:
        raise InputError(f"found {len(text)} bytes; expected at least {BATCH * length}", key="--text")
    return ids[: BATCH * length].reshape(BATCH, length)


# --- models -------------------------------------------------------------------------------------


def load(source: Source) -> torch.nn.Module:
    """The whole model in fp32, in evaluation mode. Raises InputError if it is not a language model."""
    _check_language(source)
    return (_from_checkpoint(source) if source.is_checkpoint else _from_folder(source)).eval()


def _check_language(source: Source) -> None:
    if source.is_checkpoint and source.shape.head:
        problem = f"found a model for {head_in_words(source.shape)}; expected a language model"
        raise InputError(problem, key="model.head", file=source.uri)


def _from_checkpoint(source: Source) -> torch.nn.Module:
    network = build(source.shape)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            values = source.model.read(name, "fp32", 0, parameter.numel())
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
    return network


def _from_folder(source: Source) -> torch.nn.Module:
    folder, architecture = source.model.folder, _architecture(source)
    model_class = getattr(transformers, architecture, None)
    if not folder.is_local:
        raise InputError("expected a local folder, for transformers loads it", file=folder.uri)
    if model_class is None or not architecture.endswith(("ForCausalLM", "LMHeadModel", "ForMaskedLM")):
        found = f"found {architecture or 'nothing'}"
        problem = f"{found}; expected a language model of transformers, such as LlamaForCausalLM"
        raise InputError(problem, key="architectures", file=uri_in(folder, "config.json"))
    _refuse_hub_kernels(source)
    try:
        network = model_class.from_pretrained(
            folder.path, dtype=torch.float32, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, RuntimeError) as error:
        found = first_line(error)
        raise InputError(f"found a folder that transformers cannot load ({found})", file=folder.uri) from None
    network.config.use_cache = False
    return network


def _refuse_hub_kernels(source: Source) -> None:
    """Refuse a configuration that names attention code which transformers would download and run. Raises InputError."""
    for key, value in source.model.config.items():
        if key.endswith("_implementation") and "/" in json.dumps(value):
            problem = f"found {shown(value)}, which is code of the hub; expected a configuration without it"
            raise InputError(problem, key=key, file=uri_in(source, "config.json"))


def _architecture(source: Source) -> str:
    return architecture_of(source.model.config)


def _is_causal(source: Source) -> bool:
    if source.is_checkpoint:
        return FAMILIES[source.shape.family].objective == "next token"
    return not _architecture(source).endswith("ForMaskedLM")


def _answers(network: torch.nn.Module, source: Source, inputs: Inputs, where: Where) -> Answers:
    return ask(
        network,
        inputs.ids,
        source.shape.num_layers,
        inputs.vocab_size,
        mask=inputs.mask,
        shifted=_is_causal(source),
        where=where,
    )


# --- what the target says -----------------------------------------------------------------------


def _grown_from(target: Source) -> Mapping[str, Any] | None:
    """What `raystage grow` wrote into the target: operator, options, source. None if it wrote nothing."""
    if target.is_checkpoint:
        return target.model.manifest.grown_from
    stored = next(iter(target.model.tensors.values()))
    if not stored.folder.is_local:
        return None
    with safe_open(f"{stored.folder.path}/{stored.file}", "np") as file:
        found = (file.metadata() or {}).get("grown_from")
    return json.loads(found) if found else None


def _claim(
    source: Source, target: Source, grown_from: Mapping[str, Any] | None, network: torch.nn.Module
) -> _Claim | None:
    """The growth map that the target says it was made by. Raises InputError if that map does not lead from the source
    to the target."""
    if grown_from is None:
        return None
    options = {field.name: grown_from.get(field.name) for field in fields(GrowthOptions)}
    options = GrowthOptions(**{**options, "layers": tuple(options["layers"]) if options["layers"] else None})
    tables = _tables(source, target, network)
    operator, policy = grown_from["operator"], grown_from["optimizer_state"]
    if "exact_in" not in grown_from and operators_of(operator).get("num_layers") == OPERATORS["identity"]:
        # A version before LLaMA-Pro's order wrote this. If the layers were listed, they are given.
        order = interleave(source.shape.num_layers, target.shape.num_layers)
        options = replace(options, layers=options.layers or order)
    try:
        rules = growth_map(source.shape, target.shape, operator, policy, options, tables)
    except ValueError as error:
        found = f"was grown by {operator} from {grown_from['source']}, which does not lead to it from SOURCE"
        raise InputError(f"{found} ({error})", key="TARGET", file=target.uri) from None
    layers = layer_sources(source.shape, target.shape, rules, tables)
    return _Claim(rules, layers, frozenset(tables[1].embeddings), grown_from.get("exact"))


def _tables(source: Source, target: Source, network: torch.nn.Module) -> Families:
    """The tables that name the parameters as the loaded model does: the registered ones, or those of the folder."""
    names = {name for name, _ in network.named_parameters()}
    known = FAMILIES.get(source.shape.family)
    if source.is_checkpoint or (known and names == {one.name for one in parameters(source.shape, known)}):
        return known, FAMILIES[target.shape.family]
    return source.model.table, target.model.table


def _layers(source: Source, target: Source, claim: _Claim | None) -> tuple[int | None, ...]:
    """The source layer of each target layer. Without a claim it is known only for equal depths."""
    if claim:
        return claim.layers
    count = target.shape.num_layers
    return tuple(range(count)) if count == source.shape.num_layers else (None,) * count


def _moment_norms(source: Source, target: Source) -> dict[str, dict[str, float]]:
    if not (source.is_checkpoint and target.is_checkpoint):
        return {}
    both = [state for state in source.model.states if state != "fp32" and target.model.has((state,))]
    return {state: {"before": _norm(source, state), "after": _norm(target, state)} for state in both}


def _norm(source: Source, state: str) -> float:
    total = 0.0
    for parameter in parameters(source.shape):
        held = parameter.numel if state in source.model.states_of(parameter.name) else 0
        for start in range(0, held, _PIECE):
            values = source.model.read(parameter.name, state, start, min(start + _PIECE, parameter.numel))
            total += float(np.square(values, dtype=np.float64).sum())
    return math.sqrt(total)


# --- duplicates ---------------------------------------------------------------------------------


def _duplicates(
    network: torch.nn.Module, target: Source, inputs: Inputs, claim: _Claim | None
) -> tuple[float | None, int | None]:
    """The distance between duplicates after some AdamW steps on the inputs, and the number of steps. The network
    changes."""
    pairs = find_duplicates(claim.rules, claim.embeddings) if claim else ()
    if not pairs:
        return None, None
    optimizer = _optimizer(network, target)
    train(network, optimizer, inputs, DUPLICATE_STEPS, _is_causal(target))
    weights = dict(network.named_parameters())

    def values(sample: Sample) -> np.ndarray:
        return weights[sample[0]].detach().flatten()[torch.from_numpy(sample[1])].numpy()

    there = [pair for pair in pairs if pair.one[0] in weights and pair.other[0] in weights]
    return duplicate_distance([(values(pair.one), values(pair.other)) for pair in there]), DUPLICATE_STEPS


def train(
    network: torch.nn.Module, optimizer: torch.optim.Optimizer, inputs: Inputs, steps: int, is_causal: bool
) -> None:
    """Some steps on the same inputs again and again, without dropout."""
    ids, mask = torch.from_numpy(inputs.ids), torch.from_numpy(inputs.mask)
    for _ in range(steps):
        optimizer.zero_grad()
        logits = network(input_ids=ids, attention_mask=mask).logits.float()
        masked_loss(logits, ids, mask, is_causal).backward()
        optimizer.step()


def _optimizer(network: torch.nn.Module, target: Source) -> torch.optim.AdamW:
    """With the moments of a checkpoint, because these may make duplicates different."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LR)
    if target.is_checkpoint and all("exp_avg_sq" in target.model.states_of(name) for name in target.model.steps):
        steps = target.model.steps
        for name, parameter in network.named_parameters():
            state = {"step": torch.tensor(float(steps[name]))}
            for moment in ("exp_avg", "exp_avg_sq"):
                values = torch.from_numpy(target.model.read(name, moment, 0, parameter.numel()))
                state[moment] = values.view(parameter.shape)
            optimizer.state[parameter] = state
    return optimizer
