"""The growths that every law of growth is tried on: operators, families and pairs of shapes.

A new operator needs cases here, one at least for each part that it grows (a test asks for them); the laws then
hold it as they hold the others.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import pytest

from raystage.growth.checks import changed_fields, is_exact, with_layer_kinds, with_norm_eps
from raystage.growth.depth import NO_OPTIONS, GrowthOptions
from raystage.growth.rules import GrowthMap, growth_map
from raystage.models.families import FAMILIES
from raystage.models.shape import ModelShape, image_positions
from raystage.models.tables.mixtures import MIXTURE_OF


def tiny(family: str, **changes: object) -> ModelShape:
    """A small model of a family; with grouped queries where it can have them. Of images with a head for classes."""
    table = FAMILIES[family]
    grouped = not table.heads_fill_hidden
    shape = ModelShape(
        family,
        num_layers=2,
        hidden_size=16,
        num_heads=4,
        num_kv_heads=2 if grouped else 4,
        head_size=4,
        ffn_size=24,
        vocab_size=31,
        context_length=12,
        tied_embeddings=bool(table.fields.get("tied_embeddings", ("", False))[1]),
        norm_eps=table.default_norm_eps,
    )
    if "num_experts" in table.fields:
        shape = replace(shape, num_experts=4, experts_per_token=2)
    if table.reads_images:
        shape = replace(
            shape, vocab_size=0, context_length=10, image_size=12, patch_size=4, num_channels=2, head="classes",
            num_classes=5,
        )  # fmt: skip
    if table.windows:  # shorter than the samples of the tests
        shape = replace(shape, sliding_window=5)
    if "query_pre_attn_scalar" in table.fields:
        shape = replace(shape, query_pre_attn_scalar=3)
    if table.local_rope_theta:  # both so small that few positions tell them apart
        shape = replace(shape, rope_theta=100.0, local_rope_theta=10.0)
    if not table.has_attention:
        shape = replace(shape, num_heads=0, num_kv_heads=0, head_size=0)
    if table.reads_images and not table.has_attention:
        patch = 12 if family == "mlp" else 4
        shape = replace(shape, patch_size=patch, context_length=image_positions(family, 12, patch))
    return replace(shape, **changes)


# Every family, tied and untied, with and without grouped queries, and every head.
SOURCES = {
    "llama": tiny("llama"),
    "llama tied": tiny("llama", tied_embeddings=True),
    "llama without groups": tiny("llama", num_kv_heads=4),
    "mistral": tiny("mistral"),
    "qwen2": tiny("qwen2"),
    "qwen2 tied": tiny("qwen2", tied_embeddings=True),
    "qwen3": tiny("qwen3"),
    "gpt2": tiny("gpt2"),
    "gpt2 untied": tiny("gpt2", tied_embeddings=False),
    "bert": tiny("bert"),
    "bert untied": tiny("bert", tied_embeddings=False),
    "mixtral": tiny("mixtral"),
    "qwen3_moe": tiny("qwen3_moe"),
    "olmo2": tiny("olmo2"),
    "phi3": tiny("phi3"),
    "phi": tiny("phi"),
    "phi tied": tiny("phi", tied_embeddings=True),
    "gpt_neox": tiny("gpt_neox"),
    "gemma": tiny("gemma"),
    "gemma untied": tiny("gemma", tied_embeddings=False),
    "gemma2": tiny("gemma2"),
    "gemma2 untied": tiny("gemma2", tied_embeddings=False),
    "gemma3_text": tiny("gemma3_text", layer_kinds="sf"),
    "modernbert": tiny("modernbert"),
    "modernbert untied": tiny("modernbert", tied_embeddings=False),
    "modernbert classes": tiny("modernbert", head="classes", num_classes=5),
    "vit": tiny("vit"),
    "vit pixels": tiny("vit", head="pixels", num_classes=0),
    "llama classes": tiny("llama", head="classes", num_classes=5),
    "gpt2 classes": tiny("gpt2", head="classes", num_classes=5),
    "bert classes": tiny("bert", head="classes", num_classes=5),
    "cnn": tiny("cnn"),
    "cnn pixels": tiny("cnn", head="pixels", num_classes=0),
    "mlp": tiny("mlp"),
    "mlp pixels": tiny("mlp", head="pixels", num_classes=0),
    "lstm": tiny("lstm"),
    "lstm classes": tiny("lstm", head="classes", num_classes=5),
}
LLAMA = SOURCES["llama"]


@dataclass(frozen=True)
class GrowthCase:
    """One growth, for the laws that every operator keeps."""

    operator: str
    name: str
    source: ModelShape
    target: ModelShape
    options: GrowthOptions = NO_OPTIONS

    def __str__(self) -> str:
        sizes = [f"{field} {getattr(self.target, field)}" for field in changed_fields(self.source, self.target)]
        options = [str(value).replace(" ", "") for value in self.options.given().values()]
        return "-".join([self.operator, self.name, str(self.source.num_layers), *sizes, *options])

    @property
    def exact(self) -> bool:
        """Whether the operator claims that the function stays the same."""
        return is_exact(self.source, self.target, self.operator, self.options)

    def map(self, policy: str = "grow") -> GrowthMap:
        return growth_map(self.source, self.target, self.operator, policy, self.options)


def growth(operator: str, name: str = "llama", options: GrowthOptions = NO_OPTIONS, **changes: object) -> GrowthCase:
    source = SOURCES[name]
    target = with_norm_eps(source, replace(source, **changes), operator)
    target = with_layer_kinds(source, target, operator, options)
    return GrowthCase(operator, name, source, target, options)


def deeper(
    operator: str, sources: int, targets: int, options: GrowthOptions = NO_OPTIONS, name: str = "llama"
) -> GrowthCase:
    source = SOURCES[name].with_layers(sources)
    target = with_layer_kinds(source, source.with_layers(targets), operator, options)
    return GrowthCase(operator, name, source, target, options)


def listed(*layers: int) -> GrowthOptions:
    return GrowthOptions(layers=layers)


def in_blocks(block: int) -> GrowthOptions:
    return GrowthOptions(block=block)


def _depths(operator: str, *depths: tuple) -> tuple[GrowthCase, ...]:
    """Growths of a llama, and the first of them that adds layers for every other family."""
    first = next(case for case in depths if case[1] > case[0] > 0)
    others = [
        deeper(operator, *first, *([NO_OPTIONS] * (len(first) < 3)), name)
        for name in (
            "gpt2",
            "bert",
            "mixtral",
            "vit",
            "cnn",
            "lstm",
            "mlp",
            "qwen3_moe",
            "olmo2",
            "phi",
            "gpt_neox",
            "gemma",
            "gemma2",
            "gemma3_text",
            "modernbert",
        )
    ]
    return (*(deeper(operator, *case) for case in depths), *others)


DEEPER = (
    *_depths("stack", (1, 1), (1, 5), (2, 4), (2, 6), (3, 3), (3, 6), (3, 12)),
    *_depths("interleave", (1, 2), (2, 3), (2, 4), (3, 3), (3, 7), (4, 6), (5, 7), (6, 9), (7, 8)),
    *_depths(
        "middle",
        (1, 1), (1, 5), (2, 4), (3, 4), (4, 6), (5, 7),
        (2, 2, in_blocks(2)), (3, 7, in_blocks(2)), (5, 6, in_blocks(1)), (6, 10, in_blocks(2)),
    ),
    *_depths("last", (1, 1), (1, 2), (2, 3), (3, 6), (4, 6), (7, 8)),
    *_depths("first", (1, 1), (1, 2), (2, 3), (3, 6), (4, 6), (7, 8)),
    *_depths(
        "layers",
        (1, 2, listed(0, 0)), (2, 2, listed(1, 0)), (3, 5, listed(2, 2, 0, 0, 1)), (4, 3, listed(3, 0, 3)),
        (6, 8, listed(0, 1, 2, 3, 2, 3, 4, 5)),
    ),
    *_depths("random", (0, 0), (0, 1), (0, 3), (1, 1), (1, 5), (2, 3), (3, 6)),
    *_depths(
        "identity",
        (0, 0), (1, 1), (1, 5), (2, 3), (3, 6), (3, 7), (5, 7),
        (2, 4, listed(0, 1, 0, 1)), (3, 6, listed(0, 1, 1, 1, 2, 0)), (3, 3, listed(0, 1, 2)),
    ),
    *_depths("masked", (0, 2), (1, 3), (2, 2)),
    *_depths("learned", (1, 3), (2, 3), (2, 2)),
    # Layers of two kinds by turns, in whole periods and not.
    *(deeper(operator, *depths, name="gemma2")
      for operator in ("stack", "interleave", "middle", "last", "identity", "learned")
      for depths in ((2, 4), (4, 8), (3, 6))),
    *(deeper("identity", *depths, name="gemma2") for depths in ((3, 5), (4, 6), (4, 7))),
    *(deeper("identity", *depths, name="gemma3_text") for depths in ((6, 12), (5, 6), (7, 13))),
    deeper("stack", 6, 12, name="gemma3_text"),
    *(deeper("identity", *depths, name="modernbert") for depths in ((3, 6), (4, 5), (4, 7), (1, 2))),
    *(deeper("stack", *depths, name="modernbert") for depths in ((3, 6), (4, 8))),
)  # fmt: skip

# Operators that repeat heads can also part the query heads of a group; those that add empty ones cannot.
_REPEAT = ("duplicate", "aki", "rms")


def _hidden(name: str, size: int) -> dict[str, object]:
    """A hidden size, with the heads that fill it where they must."""
    if not FAMILIES[SOURCES[name].family].heads_fill_hidden:
        return {"hidden_size": size}
    heads = size // SOURCES[name].head_size
    return {"hidden_size": size, "num_heads": heads, "num_kv_heads": heads}


def _all_at_once(name: str) -> dict[str, object]:
    """Every width at once, none of them by a whole factor, with more tokens and positions where there are tokens."""
    groups = SOURCES[name].num_kv_heads * 3 // 2
    longer = {"vocab_size": 37, "context_length": 20} if SOURCES[name].vocab_size else {}
    heads = {"num_heads": 6, "num_kv_heads": groups} if groups else {}
    return {"hidden_size": 24, "ffn_size": 40, **heads, **longer}


def _many_widths(operator: str, name: str) -> Iterator[GrowthCase]:
    """Each width alone, by whole factors and by others; and all at once."""
    changes = [_hidden(name, 24), _hidden(name, 32), _hidden(name, 40)]
    changes += [{"ffn_size": 30}, {"ffn_size": 72}, _all_at_once(name)]
    changes += [{"vocab_size": 40}, {"context_length": 20}] if SOURCES[name].vocab_size else []
    family = FAMILIES[SOURCES[name].family]
    if family.has_attention and not family.heads_fill_hidden:
        heads = [(8, 4), (8, 2), (16, 4), *([(4, 4), (8, 8)] if operator in _REPEAT else [])]
        changes += [{"num_heads": query, "num_kv_heads": key_value} for query, key_value in heads]
    for change in changes:
        yield growth(operator, name, **change)


def _few_widths(operator: str, name: str) -> Iterator[GrowthCase]:
    yield growth(operator, name, **_hidden(name, 32), ffn_size=48)
    yield growth(operator, name, **_all_at_once(name))


_WELL_TRIED = ("llama", "gpt2", "bert", "cnn", "lstm")
_MASKED = ("llama", "gpt2", "bert")

WIDER = (
    *(case for operator in ("zero_pad", "duplicate", "aki", "rms") for name in SOURCES
      for case in (_many_widths if name in _WELL_TRIED else _few_widths)(operator, name)),
    *(growth(operator, name, num_heads=query, num_kv_heads=key_value) for operator in _REPEAT
      for name, query, key_value in (("mistral", 6, 3), ("qwen2", 6, 2), ("qwen3", 10, 5), ("mixtral", 6, 6),
                                     ("phi", 6, 3), ("olmo2", 6, 3), ("olmo2", 8, 4))),
    *(case for operator in ("masked", "learned") for name in _MASKED
      for case in (_many_widths if name == "llama" else _few_widths)(operator, name)),
)  # fmt: skip


def mixture(operator: str = "upcycle", experts: int = 4, name: str = "llama", **changes: object) -> GrowthCase:
    family = MIXTURE_OF.get(SOURCES[name].family, "mixtral")
    return growth(
        operator, name, family=family, num_experts=experts, experts_per_token=min(2, experts), **changes
    )  # fmt: skip


# Several operators in one growth.
MIXED = (
    mixture(),
    mixture(experts=1),
    mixture(name="mistral"),
    mixture(name="llama tied"),
    mixture(name="qwen3"),
    mixture("num_layers=identity, hidden_size=duplicate, ffn_size=duplicate, num_experts=upcycle",
            num_layers=4, hidden_size=32, ffn_size=48),
    mixture("hidden_size=zero_pad, num_heads=duplicate, num_experts=upcycle", hidden_size=24, num_heads=8),
    *(growth("num_layers=identity, hidden_size=duplicate, ffn_size=zero_pad, num_heads=duplicate", name,
             num_layers=4, **(_all_at_once(name) if "bert" not in name else {**_hidden(name, 32), "ffn_size": 40}))
      for name in ("llama", "qwen2 tied", "gpt2", "bert", "modernbert", "mixtral", "vit", "cnn", "lstm", "mlp pixels")),
    growth("num_layers=stack, hidden_size=rms, ffn_size=aki, num_heads=zero_pad", num_layers=4,
           **_all_at_once("llama")),
    growth("num_layers=random, ffn_size=duplicate", "gpt2", num_layers=3, ffn_size=40),
)  # fmt: skip

GROWTHS = (*DEEPER, *WIDER, *MIXED)
# What holds for these two holds only with what training adds to them: `masked` is exact behind the model's mask,
# `learned` once its maps are fitted. Their maps keep the laws of structure alone.
NEED_TRAINING = ("masked", "learned")
EXACT = tuple(case for case in GROWTHS if case.exact and case.operator not in NEED_TRAINING)


def for_each(cases: Iterable[GrowthCase]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a test of one `case` a test of all cases of an operator, which says which of them failed.

    There are hundreds of cases and many laws. As tests of their own they would mostly be time of pytest.
    """
    by_operator: dict[str, list[GrowthCase]] = {}
    for case in cases:
        by_operator.setdefault(case.operator, []).append(case)

    def decorated(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(of_operator: list[GrowthCase], **others: object) -> None:
            for case in of_operator:
                try:
                    test(case=case, **others)
                except BaseException as error:
                    error.add_note(f"in the case {case}")
                    raise

        parameters = inspect.signature(test).parameters.values()
        of_operator = inspect.Parameter("of_operator", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        run.__signature__ = inspect.Signature([of_operator, *(one for one in parameters if one.name != "case")])
        return pytest.mark.parametrize("of_operator", by_operator.values(), ids=by_operator)(run)

    return decorated
