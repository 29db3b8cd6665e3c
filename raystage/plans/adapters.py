"""The adapter of a stage: which matrices it goes on, which parameters it has, what these cost.

Beside a matrix W of shape (out, in) it has A of shape (rank, in) and B of shape (out, rank). The layer computes
`x W' + alpha / rank * (x A') B'`, and only A and B are trained. Source: LoRA, Hu et al. (2106.09685).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from raystage.config.stages.adapter import Adapter
from raystage.errors import InputError
from raystage.growth.checks import exchanges_head
from raystage.models.depth import constant_inputs
from raystage.models.shape import ModelShape, Parameter, parameters, table_of
from raystage.units import shown

_WEIGHT = ".weight"
MERGED, BESIDE = "merged", "beside"
# Beside a checkpoint, where a stage keeps its adapter: as peft's `save_pretrained` writes them.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class AdapterMatrix:
    """A or B of one matrix. name: as checkpoints have it. weight: the name of the matrix. std: of its first values,
    which are 0 in B, so that the model computes at first what it did before."""

    name: str
    shape: tuple[int, int]
    weight: str
    std: float

    @property
    def is_first(self) -> bool:
        """Whether it is A."""
        return self.std > 0


@dataclass(frozen=True)
class AdapterPlan:
    """weights: the names of the matrices with an adapter, in the model's order. in_full: the names of the parameters
    that are trained as they are. written: the ends of modules' names as the schedule has them, where these are no
    patterns."""

    rank: int
    alpha: float
    dropout: float
    weights: tuple[str, ...]
    in_full: tuple[str, ...] = ()
    keep: str = MERGED
    written: tuple[str, ...] = ()

    @property
    def scale(self) -> float:
        """What the product of B and A is multiplied by."""
        return self.alpha / self.rank

    @property
    def modules(self) -> tuple[str, ...]:
        """The names of the modules that it goes on."""
        return tuple(name.removesuffix(_WEIGHT) for name in self.weights)

    def facts(self) -> dict[str, object]:
        """As plain values, for the key."""
        return {
            "lora": {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, "on": self.modules},
            **({"train": self.in_full} if self.in_full else {}),
            **({"keep": self.keep} if self.keep != MERGED else {}),
        }

    def matrices(self, shape: ModelShape) -> tuple[AdapterMatrix, ...]:
        """A and B of each matrix, in order."""
        return _matrices(self, shape)

    def trained(self, shape: ModelShape) -> dict[str, tuple[int, ...]]:
        """By name the shapes of all that is trained: A and B of each matrix, then the parameters in full."""
        own = {one.name: one.shape for one in self.matrices(shape)}
        return {**own, **{one.name: one.shape for one in parameters(shape) if one.name in self.in_full}}

    def frozen(self, shape: ModelShape) -> frozenset[str]:
        """The names of the model's own parameters that are not trained."""
        return frozenset(one.name for one in parameters(shape)) - set(self.in_full)

    def num_trained(self, shape: ModelShape) -> int:
        """The number of parameters that are trained: its own, and those in full."""
        return sum(map(math.prod, self.trained(shape).values()))

    def num_added(self, shape: ModelShape) -> int:
        """The number of its own parameters."""
        return sum(math.prod(one.shape) for one in self.matrices(shape))

    def sample_flops(self, shape: ModelShape, length: int) -> int:
        """Training FLOPs of its own products for a sample of `length` positions: six for each of its parameters and
        positions; of an A whose input needs no gradient four."""
        constant = constant_inputs(shape, self.frozen(shape), frozenset(self.weights))
        return length * sum(
            one.shape[0] * one.shape[1] * (4 if one.is_first and one.weight in constant else 6)
            for one in self.matrices(shape)
        )

    def rate_factors(self, of_weights: Mapping[str, float], shape: ModelShape) -> dict[str, float]:
        """By name what the rates of its matrices are multiplied by: as those of the matrices that they are beside."""
        return {one.name: of_weights[one.weight] for one in self.matrices(shape) if one.weight in of_weights}


@lru_cache(maxsize=256)
def _matrices(adapter: AdapterPlan, shape: ModelShape) -> tuple[AdapterMatrix, ...]:
    found = []
    for one in parameters(shape):
        if one.name in adapter.weights:
            made, read = _sides(one)
            module = one.name.removesuffix(_WEIGHT)
            # The variance of torch's own first values of a linear layer, which peft takes too.
            std = (3 * read) ** -0.5
            found.append(AdapterMatrix(f"{module}.lora_A.weight", (adapter.rank, read), one.name, std))
            found.append(AdapterMatrix(f"{module}.lora_B.weight", (made, adapter.rank), one.name, 0.0))
    return tuple(found)


def is_input_first(one: Parameter) -> bool:
    """Whether a matrix is stored as (inputs, outputs), as those of GPT-2."""
    return one.spec.axes[0].role == "in"


def _sides(one: Parameter) -> tuple[int, int]:
    """Outputs and inputs of a matrix."""
    return (one.shape[1], one.shape[0]) if is_input_first(one) else (one.shape[0], one.shape[1])


# --- found ------------------------------------------------------------------------------------


def find_adapter(written: Adapter, before: ModelShape, shape: ModelShape) -> AdapterPlan:
    """The adapter that a stage asks for. before: the shape of the model that it starts from.

    Raises InputError, with the stage's own key, for what does not fit.
    """
    lora = written.lora
    able = _able(shape)
    weights = _chosen(lora.modules, able, shape) if lora.modules else able
    too_wide = next((one for one in weights if lora.rank > min(one.shape)), None)
    if too_wide is not None:
        problem = f"found {lora.rank} for {too_wide.name} of {too_wide.shape[0]} x {too_wide.shape[1]}"
        raise InputError(f"{problem}; expected at most {min(too_wide.shape)}", key="adapter.lora.rank")
    plain = () if any("*" in one or "?" in one or "[" in one for one in lora.modules) else lora.modules
    names = tuple(one.name for one in weights)
    return AdapterPlan(
        rank=lora.rank,
        alpha=2.0 * lora.rank if lora.alpha is None else lora.alpha,
        dropout=lora.dropout,
        weights=names,
        in_full=_in_full(lora.in_full, names, before, shape),
        keep=written.keep,
        written=plain,
    )


def _able(shape: ModelShape) -> tuple[Parameter, ...]:
    """The matrices of the layers that are linear layers of their own: no experts, no routers."""
    if table_of(shape).module:
        problem = (
            f"found for the family {shape.family}, whose layers no table describes; expected a family of transformers"
        )
        raise InputError(problem, key="adapter")
    return tuple(one for one in parameters(shape) if _is_linear(one))


def _is_linear(one: Parameter) -> bool:
    roles = sorted(axis.role for axis in one.spec.axes)
    return one.layer is not None and one.expert is None and roles == ["in", "out"] and one.name.endswith(_WEIGHT)


def _chosen(written: Sequence[str], able: Sequence[Parameter], shape: ModelShape) -> tuple[Parameter, ...]:
    for name in written:
        if not any(_is_meant(one, name) for one in able):
            raise InputError(_not_found(name, able, shape), key="adapter.lora.on")
    return tuple(one for one in able if any(_is_meant(one, name) for name in written))


def _is_meant(one: Parameter, name: str) -> bool:
    """Whether a name or pattern means a matrix: as `target_modules` of peft, or with * anywhere."""
    module = one.name.removesuffix(_WEIGHT)
    return module == name or module.endswith(f".{name}") or fnmatchcase(module, name)


def _not_found(name: str, able: Sequence[Parameter], shape: ModelShape) -> str:
    others = [one for one in parameters(shape) if _is_meant(one, name) or one.name == name]
    ends = ", ".join(dict.fromkeys(one.name.removesuffix(_WEIGHT).rpartition(".")[2] for one in able))
    if others:
        return f"found {shown(name)}, which is no linear layer of its own in the layers; expected some of {ends}"
    return f"found {shown(name)}, which no module of this {shape.family} is; expected some of {ends}"


def _in_full(written: Sequence[str], weights: Sequence[str], before: ModelShape, shape: ModelShape) -> tuple[str, ...]:
    """The parameters that are trained as they are: those asked for, and what is new in the model."""
    names = [one.name for one in parameters(shape)]
    for pattern in written:
        if not any(fnmatchcase(name, pattern) for name in names):
            problem = f"found {shown(pattern)}, which is no parameter of this model"
            expected = f"expected a name such as {names[-1]}, or a pattern of names with *"
            raise InputError(f"{problem}; {expected}", key="adapter.lora.train")
        twice = next((name for name in weights if fnmatchcase(name, pattern)), None)
        if twice is not None:
            problem = f"found {shown(pattern)}, which means {twice}, beside which the adapter is"
            raise InputError(f"{problem}; expected either of them", key="adapter.lora.train")
    old = {one.name: one.shape for one in parameters(before)} if exchanges_head(before, shape) else None
    new = {one.name for one in parameters(shape) if old is not None and old.get(one.name) != one.shape}
    return tuple(name for name in names if name in new or any(fnmatchcase(name, pattern) for pattern in written))
