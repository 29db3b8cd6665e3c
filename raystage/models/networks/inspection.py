"""Looks at a model of the user's own, or at an architecture of transformers without a table, when a plan is made.

The model is built once without memory (on torch's "meta" device) for its parameters and FLOPs, and once really, if it
is not large, to see whether it always says the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from raystage.errors import InputError
from raystage.models.networks.answers import BUILD, Named, Wanted, check_answers, said
from raystage.models.table import Axis, ParameterSpec, fixed

_NUMBERED = re.compile(r"((?:[^.]+\.)*?)(\d+)\.(.+)")
# A larger model is not built really when a plan is made.
_MOST_BUILT = 50_000_000
_UNIT_OF = {"hidden_size": "hidden", "ffn_size": "ffn"}


@dataclass(frozen=True)
class Found:
    """What a model turned out to be; see `models.own.OwnModel`."""

    num_layers: int
    before: tuple[ParameterSpec, ...]
    layer: tuple[ParameterSpec, ...]
    after: tuple[ParameterSpec, ...]
    embeddings: tuple[str, ...]
    norm: str
    costs: tuple[str, str, str]
    widths: Mapping[str, int]


def inspect_model(wanted: Wanted) -> Found:
    """Raises InputError where the model cannot be trained in stages, naming what is wrong with it."""
    try:
        return _inspected(wanted)
    except InputError as error:
        if wanted.reference or error.key != BUILD:
            raise
        raise InputError(error.problem, key="model.config") from error


def _inspected(wanted: Wanted) -> Found:
    with torch.device("meta"):
        network = wanted.made().eval()
    tensors = _tensors(network)
    is_small = sum(one.numel() for one in network.parameters()) <= _MOST_BUILT
    costs = _costs(network, wanted, is_small)
    if _tensors(network).keys() != tensors.keys():
        new = sorted(_tensors(network).keys() - tensors.keys())[0]
        raise InputError(f"found {new}, which forward creates; expected all parameters in __init__", key=BUILD)
    if is_small:
        check_answers(wanted)
    prefix, count = _layers(tensors, wanted.layers)
    rows = _rows(network, tensors, wanted)
    before, layer, after = _placed(rows, prefix, count)
    embeddings = tuple(f"{name}.weight" for name, one in network.named_modules() if isinstance(one, torch.nn.Embedding))
    known = tuple(name for name in embeddings if name in {row.name for row in before})
    widths = {size: wanted.width(size) for size in wanted.widths}
    return Found(count, before, layer, after, known, _norm(network), costs, widths)


# --- parameters ---------------------------------------------------------------------------------


def _tensors(network: torch.nn.Module) -> Named:
    """Parameters and persistent buffers, by name."""
    for name, one in network.named_parameters():
        if isinstance(one, torch.nn.parameter.UninitializedParameter):
            problem = f"found {name}, whose size is not known before a first call"
            raise InputError(f"{problem}; expected layers with all sizes, not lazy ones", key=BUILD)
    stored = network.state_dict()
    for name, one in stored.items():
        if not isinstance(one, torch.Tensor):
            problem = f"found {name} in the module's state, a {type(one).__name__}"
            raise InputError(f"{problem}; expected tensors alone, which a checkpoint can hold", key=BUILD)
    trained = dict(network.named_parameters())
    if not trained:
        raise InputError("found a module without parameters; expected one that can be trained", key=BUILD)
    frozen = next((name for name, one in trained.items() if not one.requires_grad), None)
    if frozen is not None:
        raise InputError(_frozen(frozen, isinstance(network, PreTrainedModel)), key=BUILD)
    number = next((name for name, one in trained.items() if not one.ndim), None)
    if number is not None:
        problem = f"found {number}, a parameter without an axis, which DeepSpeed does not send to workers"
        expected = "another architecture" if isinstance(network, PreTrainedModel) else "one of shape [1]"
        raise InputError(f"{problem}; expected {expected}", key=BUILD)
    complex_one = next((name for name, one in stored.items() if one.is_complex()), None)
    if complex_one is not None:
        problem = f"found {complex_one} of complex numbers, which no optimizer here trains"
        raise InputError(f"{problem}; expected their real and imaginary parts", key=BUILD)
    others = {name: one for name, one in stored.items() if name not in trained and not _is_tied(one, name, network)}
    return {**trained, **others}


def _frozen(name: str, is_of_transformers: bool) -> str:
    if is_of_transformers:
        problem = f"found {name}, which this architecture does not train, and here every parameter is trained"
        return f"{problem}; expected another architecture"
    return f"found {name} with requires_grad=False; expected freeze.parameters in the stage instead, or a buffer"


def _is_tied(one: torch.Tensor, name: str, network: torch.nn.Module) -> bool:
    """Whether it is a second name of a parameter."""
    owner, _, leaf = name.rpartition(".")
    return leaf in network.get_submodule(owner)._parameters


def _layers(tensors: Named, asked: str | None) -> tuple[str, int]:
    """The text before the layers' numbers, and their number."""
    numbers: dict[str, set[int]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    for name, one in tensors.items():
        match = _NUMBERED.fullmatch(name)
        if match:
            numbers[match[1]].add(int(match[2]))
            sizes[match[1]] += one.numel()
    lists = {prefix.rstrip("."): found for prefix, found in numbers.items()}
    whole = {name: len(found) for name, found in lists.items() if found == set(range(len(found)))}
    if asked is not None and asked not in whole:
        there = f"expected one of {', '.join(whole)}" if whole else "there is no list of layers with parameters"
        raise InputError(f"found {asked!r}; {there}", key="model.layer_list")
    if not whole:
        example = "expected its blocks in a torch.nn.ModuleList, each with parameters"
        raise InputError(f"found no numbered layers in the module; {example}", key=BUILD)
    name = asked or max(whole, key=lambda one: sizes[f"{one}." if one else ""])
    return f"{name}." if name else "", whole[name]


def _placed(
    rows: Sequence[ParameterSpec], prefix: str, count: int
) -> tuple[tuple[ParameterSpec, ...], tuple[ParameterSpec, ...], tuple[ParameterSpec, ...]]:
    """Rows before the layers, of every layer (with the layers that have them), and after them, in the model's order."""
    inside = re.compile(re.escape(prefix) + r"(\d+)\.(.+)")
    before: list[ParameterSpec] = []
    after: list[ParameterSpec] = []
    layer: dict[ParameterSpec, set[int]] = defaultdict(set)
    for row in rows:
        match = inside.fullmatch(row.name)
        if match:
            layer[replace(row, name=f"{_literal(prefix)}{{layer}}.{_literal(match[2])}")].add(int(match[1]))
        else:
            (after if layer else before).append(replace(row, name=_literal(row.name)))
    numbered = tuple(
        replace(row, layers=None if len(found) == count else frozenset(found)) for row, found in layer.items()
    )
    return tuple(before), numbered, tuple(after)


def _literal(name: str) -> str:
    return name.replace("{", "{{").replace("}", "}}")


# --- axes ---------------------------------------------------------------------------------------


def _rows(network: torch.nn.Module, tensors: Named, wanted: Wanted) -> list[ParameterSpec]:
    """A row for every tensor; axes that an option of `widths` changes have its units, the others a fixed size."""
    steps = {}
    for size, option in wanted.widths.items():
        now = wanted.width(size)
        with torch.device("meta"):
            wider = _tensors(wanted.made(**{option: 2 * now}))
        if wider.keys() != tensors.keys():
            problem = f"found other parameters with {option}: {2 * now}; expected wider ones of the same names"
            raise InputError(problem, key=f"model.widths.{size}")
        steps[size] = (now, wider)
    trained = {name for name, _ in network.named_parameters()}
    return [_row(name, one, network, steps, name not in trained, wanted) for name, one in tensors.items()]


def _row(
    name: str, one: torch.Tensor, network: torch.nn.Module, steps: Mapping[str, tuple[int, Named]], is_buffer: bool,
    wanted: Wanted,
) -> ParameterSpec:  # fmt: skip
    roles = list(_roles(name, one, network, is_buffer))
    axes = [_axis(name, place, size, roles[place], steps) for place, size in enumerate(one.shape)]
    writes = any(fnmatchcase(name, pattern) for pattern in wanted.writes_residual)
    return ParameterSpec(name, tuple(axes), writes_residual=writes, is_buffer=is_buffer)


def _axis(name: str, place: int, size: int, role: str, steps: Mapping[str, tuple[int, Named]]) -> Axis:
    for field, (now, wider) in steps.items():
        grown = wider[name].shape[place] - size
        if grown and (grown % now or size != grown):
            problem = f"found {name} with {size} and {size + grown} for {now} and {2 * now}"
            raise InputError(f"{problem}; expected a multiple of the option", key=f"model.widths.{field}")
        if grown:
            return Axis(role, (_UNIT_OF[field],) * (grown // now))
    return fixed(size)


def _roles(name: str, one: torch.Tensor, network: torch.nn.Module, is_buffer: bool) -> Iterator[str]:
    """What each axis does, by the kind of the module that has the tensor; see `models.table.Axis`."""
    owner, _, leaf = name.rpartition(".")
    module = network.get_submodule(owner)
    if "Norm" in type(module).__name__:
        yield "statistic" if is_buffer else "shift" if leaf == "bias" else "gain"
    elif isinstance(module, torch.nn.Embedding):
        yield from ("out", "out")
    elif isinstance(module, torch.nn.modules.conv._ConvTransposeNd) and one.ndim > 1:
        yield from ("in", "out")
    else:
        yield from ("out", "in")
    yield from ["out"] * one.ndim


def _norm(network: torch.nn.Module) -> str:
    """The kind of norms, which width depends on; "layer", the strictest, where there are several kinds."""
    names = {type(one).__name__ for one in network.modules() if "Norm" in type(one).__name__}
    kinds = {"batch" if "Batch" in name else "rms" if "RMS" in name.upper() else "layer" for name in names}
    return kinds.pop() if len(kinds) == 1 else "layer"


# --- what it costs ------------------------------------------------------------------------------


def _costs(network: torch.nn.Module, wanted: Wanted, is_small: bool) -> tuple[str, str, str]:
    """See `OwnModel`. Source: torch's counter of matrix products and convolutions, at three lengths. A small model that
    cannot be called without memory, as one that looks at values, is called really."""
    try:
        return _counts(network, wanted, "meta")
    except InputError:
        if not is_small:
            raise
    with torch.random.fork_rng(devices=[]):
        return _counts(wanted.made().eval(), wanted, "cpu")


def _counts(network: torch.nn.Module, wanted: Wanted, device: str) -> tuple[str, str, str]:
    places = max(1, wanted.length)
    if wanted.sizes["image_size"]:
        return str(_counted(network, wanted, places, device)), "0", "0"
    # The longest first: a model that fails does so on samples of the length that the user gave.
    lengths = sorted({max(1, places // 4), max(2, places // 2), max(3, places)}, reverse=True)
    return tuple(map(str, _square(lengths, [_counted(network, wanted, one, device) for one in lengths])))


def _counted(network: torch.nn.Module, wanted: Wanted, length: int, device: str) -> Fraction:
    """FLOPs of a forward pass over one sample. Of attention on a CPU torch counts only the plain products. It follows
    what needs a gradient, also a parameter that is the input of a layer (the positions of a DeBERTa), and cannot."""
    network.requires_grad_(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            said(network, wanted, length, device)
    finally:
        network.requires_grad_(True)
    return Fraction(counter.get_total_flops(), 2)


def _square(lengths: Sequence[int], counts: Sequence[Fraction]) -> tuple[Fraction, Fraction, Fraction]:
    """The numbers (c, a, b) of c + a*n + b*n^2 through three points (Lagrange)."""
    (x, y, z), (p, q, r) = lengths, counts
    b = p / ((x - y) * (x - z)) + q / ((y - x) * (y - z)) + r / ((z - x) * (z - y))
    a = (q - p) / (y - x) - b * (x + y)
    return p - a * x - b * x * x, a, b
