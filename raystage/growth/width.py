"""Width: what each operator does to the rows and columns of the parameters that make, read or scale grown units.

"Hidden" units are those of the residual stream, which every block reads through a norm and adds to. "Inner" units (of
feed-forward layers and heads) are made by one projection and read by the next. For both kinds an operator gives one
axis map per role: "out" for the parameters that produce the units, "in" for those that sum over them, "gain" and
"shift" for norms over them, and "final gain", "final shift" for the norm before the head. A batch norm acts on every
unit alone, so that copies have the same statistics, and units that hold zero change nothing for the others.

Gradient factors follow from the chain rule through an exact growth. The law tests compare them with those of autograd,
tensor by tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from raystage.growth.axis_maps import FRESH, MEAN, ZERO, AxisMap, Heads, Widening, padded, padded_heads, repeated
from raystage.growth.axis_maps import repeated_heads as _repeated_heads

Maps = dict[str, AxisMap]


@dataclass(frozen=True)
class Stream:
    """The residual stream: its norms, and whether the head is the embedding, so that a change of scale would show.

    post_norm: blocks read the stream itself, without a norm before them. by_whole_factors: something reads or makes it
    of which only whole factors keep the function.
    """

    norm: str
    post_norm: bool
    tied: bool
    by_whole_factors: bool = False


@dataclass(frozen=True)
class WidthOperator:
    """A way to grow width.

    hidden(d, D, stream), inner(widening): axis maps by role. heads: the origin of heads, or None where they cannot
    grow. units: the origin of inner units. exact(d, D, stream): whether hidden units grow without changing the
    function; inner units then do so too. variance(d, D): of the target's hidden units divided by the source's, for the
    norms' eps.
    """

    hidden: Callable[[int, int, Stream], Maps]
    inner: Callable[[Widening], Maps]
    units: Callable[[int, int], Widening]
    heads: Callable[[Heads, Heads], tuple[Widening, Widening] | None]
    exact: Callable[[int, int, Stream], bool]
    exact_inside: bool
    variance: Callable[[int, int, Stream], float]


def _map(
    note: str, units: Widening, new: int, value: Sequence[float] = (), gradient: Sequence[float] = (), **more: object
) -> AxisMap:
    """The map of `units`; those without a source are `new`."""
    index = tuple(unit if unit >= 0 else new for unit in units.origin)
    return AxisMap(
        f"{note} {units.source} > {units.target}", units.source, index, tuple(value), tuple(gradient), **more
    )


def _with_final(maps: Maps) -> Maps:
    """The norms before the head, and those behind blocks where nothing else is said, as any other."""
    return {"final gain": maps["gain"], "final shift": maps["shift"], "branch gain": maps["gain"], **maps}


# --- zero_pad -----------------------------------------------------------------------------------


def _zero_padded_hidden(source: int, target: int, stream: Stream) -> Maps:
    """`[E, 0]`: the new units hold zero, so the weights that read them may be random. An RMSNorm divides by less, as
    its mean includes the zeros; its gains make up for that by `sqrt(d/D)`. A LayerNorm's mean changes, too: not exact.
    """
    units, sure = padded(source, target), stream.norm != "layer"
    root = math.sqrt(source / target) if stream.norm == "rms" else 1.0
    return _with_final(
        {
            "out": _map("zero_pad", units, ZERO, predicts=sure),
            "in": _map("zero_pad", units, FRESH, predicts=sure),
            "gain": _map("zero_pad", units, FRESH, [root] * target, [1 / root] * target, predicts=sure),
            "shift": _map("zero_pad", units, FRESH, predicts=sure),
        }
    )


def _zero_padded_inside(units: Widening) -> Maps:
    """New units are random, and nothing reads them yet."""
    return {"out": _map("zero_pad", units, FRESH), "in": _map("zero_pad", units, ZERO)}


# --- duplicate ----------------------------------------------------------------------------------


def _duplicated_hidden(source: int, target: int, stream: Stream) -> Maps:
    """As many whole copies as fit, the rest zero (under a LayerNorm: the mean of the others, which it subtracts).

    In effect the fan-in is split evenly, so that the gradients of copies stay in proportion through the norms. But the
    split differs: before a projection, copy c has the gain `u_c` and the column `1 / (n u_c)`, with its own `u` for
    every copy, so that copies become different from the second step on. Where blocks read the stream without a norm
    (BERT, OLMo 2), gains must stay equal: there columns share the source's unevenly, and for the weights that write the
    copies only the sum of the gradients is known. A norm behind a block makes what the stream gets, so its gains stay
    equal everywhere.
    """
    count = target // source
    whole = repeated(source, count * source)
    units = Widening(source, whole.origin + (-1,) * (target - count * source))
    rest = units.target - whole.target
    root = 1.0 if stream.norm == "batch" else math.sqrt(count * source / target)
    even = count == 1 or stream.post_norm
    u = [1.0 if even else 1 / (1 + number / (count - 1)) for number in whole.number]
    share = uneven_shares(count) if stream.post_norm else [1 / count] * count
    columns = [share[number] / one for number, one in zip(whole.number, u, strict=True)]
    ones = [1.0] * rest
    predicted = rest == 0 or (stream.norm != "layer" and not stream.post_norm)
    read = {"predicts": predicted, "kept": units.first}
    sure = {"predicts": predicted and not stream.post_norm, "kept": units.first}
    maps = {
        "out": _map(
            "duplicate", units, MEAN if stream.norm == "layer" else ZERO, (), [1 / count for _ in u] + ones, **sure
        ),
        "in": _map("duplicate", units, FRESH, columns + ones, u + ones, **read),
        "gain": _map(
            "duplicate", units, FRESH,
            [root * one for one in u] + ones, [1 / (count * one * root) for one in u] + ones, **sure,
        ),
        "bare in": _map("duplicate", units, FRESH, [1 / count for _ in u] + ones, **read),
        "branch gain": _map(
            "duplicate", units, FRESH, [root for _ in u] + ones, [1 / (count * root) for _ in u] + ones, **sure
        ),
        "shift": _map("duplicate", units, FRESH, u + ones, [1 / (count * one) for one in u] + ones, **sure),
    }  # fmt: skip
    if not stream.tied:
        return _with_final(maps)
    # A tied embedding reads what it wrote: all copies count in the logits, so each must have 1/n of the value.
    return {
        **_with_final(maps),
        "final gain": _map(
            "duplicate", units, FRESH, [root / count for _ in u] + ones, [1 / root for _ in u] + ones, **read
        ),
        "final shift": _map("duplicate", units, FRESH, [1 / count for _ in u] + ones, **read),
    }


def uneven_shares(count: int) -> list[float]:
    """`count` shares of one, all different: 3/4 and 1/4; 5/9, 3/9 and 1/9."""
    return [(2 * (count - number) - 1) / count**2 for number in range(count)]


def _duplicated_inside(units: Widening) -> Maps:
    """Copies whose reader's columns share the source's unevenly; their gradients are in proportion to the shares."""
    share = [uneven_shares(count)[number] for count, number in zip(units.copies, units.number, strict=True)]
    return {
        "out": _map("duplicate", units, FRESH, gradient=share, kept=units.first),
        "in": _map("duplicate", units, FRESH, share, kept=units.first),
    }


def _copied_variance(source: int, target: int, stream: Stream) -> float:
    return 1.0 if stream.norm == "batch" else (target // source) * source / target


# --- rms ----------------------------------------------------------------------------------------


def rms_scale(source: int, target: int) -> float:
    """The factor of columns where both they and the units they read are copied, a ratio `c = (D - d) / d` of them: `1 /
    sqrt(1 + 3c)` up to c = 1, `1 / (1 + c)` beyond. SPARKLING (2602.02472)."""
    ratio = (target - source) / source
    return 1 / math.sqrt(1 + 3 * ratio) if ratio <= 1 else 1 / (1 + ratio)


def _rms_hidden(source: int, target: int, stream: Stream) -> Maps:
    units, scale = repeated(source, target), rms_scale(source, target)
    guess = {"predicts": False, "kept": units.first}
    final = [scale] * target if stream.tied else []
    gradient = [] if stream.tied else [scale] * target
    return {
        "out": _map("rms", units, FRESH, (), [scale] * target, **guess),
        "in": _map("rms", units, FRESH, [scale] * target, **guess),
        "gain": _map("rms", units, FRESH, (), [scale] * target, **guess),
        "branch gain": _map("rms", units, FRESH, (), [scale] * target, **guess),
        "shift": _map("rms", units, FRESH, (), [scale] * target, **guess),
        "final gain": _map("rms", units, FRESH, final, gradient, **guess),
        "final shift": _map("rms", units, FRESH, final, gradient, **guess),
    }


def _rms_inside(units: Widening) -> Maps:
    scale, guess = rms_scale(units.source, units.target), {"predicts": False, "kept": units.first}
    return {
        "out": _map("rms", units, FRESH, gradient=[scale] * units.target, **guess),
        "in": _map("rms", units, FRESH, [scale] * units.target, **guess),
    }


# --- aki ----------------------------------------------------------------------------------------


def _advanced_hidden(source: int, target: int, stream: Stream) -> Maps:
    """Copies, of which the new ones take their rows from the next layer, so that they differ; fan-in is split
    evenly."""
    units = repeated(source, target)
    share = [1 / count for count in units.copies]
    gone = {"predicts": False, "kept": (False,) * target}
    final = share if stream.tied else ()
    return {
        "out": _map("aki", units, FRESH, beyond=_new(units), **gone),
        "in": _map("aki", units, FRESH, share, **gone),
        "gain": _map("aki", units, FRESH, **gone),
        "branch gain": _map("aki", units, FRESH, **gone),
        "shift": _map("aki", units, FRESH, **gone),
        "final gain": _map("aki", units, FRESH, final, **gone),
        "final shift": _map("aki", units, FRESH, final, **gone),
    }


def _advanced_inside(units: Widening) -> Maps:
    """The last layer has no next layer and gets plain copies, which with an even split would stay equal for ever."""
    share = [uneven_shares(count)[number] for count, number in zip(units.copies, units.number, strict=True)]
    gone = {"predicts": False, "kept": (False,) * units.target}
    return {
        "out": _map("aki", units, FRESH, beyond=_new(units), **gone),
        "in": _map("aki", units, FRESH, share, **gone),
    }


def _new(units: Widening) -> tuple[bool, ...]:
    return tuple(not first for first in units.first)


# --- masked -------------------------------------------------------------------------------------


def _masked_hidden(source: int, target: int, stream: Stream) -> Maps:
    """New units behind the model's own mask, which starts at 0: whatever they hold, nothing changes."""
    units = padded(source, target)
    return _with_final({role: _map("masked", units, FRESH) for role in ("out", "in", "gain", "shift")})


def _masked_inside(units: Widening) -> Maps:
    return {role: _map("masked", units, FRESH) for role in ("out", "in")}


# --- learned ------------------------------------------------------------------------------------


def _learned_hidden(source: int, target: int, stream: Stream) -> Maps:
    """The maps before they are fitted: copies, whose fan-in is split evenly."""
    units = repeated(source, target)
    share = [1 / count for count in units.copies]
    gone = {"predicts": False, "kept": (False,) * target}
    final = share if stream.tied else ()
    return {
        "in": _map("learned", units, FRESH, share, **gone),
        "final gain": _map("learned", units, FRESH, final, **gone),
        "final shift": _map("learned", units, FRESH, final, **gone),
        **{role: _map("learned", units, FRESH, **gone) for role in ("out", "gain", "branch gain", "shift")},
    }


def _learned_inside(units: Widening) -> Maps:
    share = [1 / count for count in units.copies]
    gone = {"predicts": False, "kept": (False,) * units.target}
    return {"out": _map("learned", units, FRESH, **gone), "in": _map("learned", units, FRESH, share, **gone)}


# --- the table ----------------------------------------------------------------------------------


def _one(source: int, target: int, stream: Stream) -> float:
    return 1.0


def _padded_variance(source: int, target: int, stream: Stream) -> float:
    return source / target if stream.norm == "rms" else 1.0


def _always(source: int, target: int, stream: Stream) -> bool:
    return True


def _never(source: int, target: int, stream: Stream) -> bool:
    return False


def _not_under_layer_norm(source: int, target: int, stream: Stream) -> bool:
    return stream.norm != "layer"


def _before_norms_or_whole(source: int, target: int, stream: Stream) -> bool:
    return not (stream.post_norm or stream.by_whole_factors) or target % source == 0


WIDTH_OPERATORS = {
    "zero_pad": WidthOperator(
        _zero_padded_hidden, _zero_padded_inside, padded, padded_heads, _not_under_layer_norm, True, _padded_variance
    ),
    "duplicate": WidthOperator(
        _duplicated_hidden,
        _duplicated_inside,
        repeated,
        _repeated_heads,
        _before_norms_or_whole,
        True,
        _copied_variance,
    ),
    "aki": WidthOperator(_advanced_hidden, _advanced_inside, repeated, _repeated_heads, _never, False, _one),
    "rms": WidthOperator(_rms_hidden, _rms_inside, repeated, _repeated_heads, _never, False, _one),
    "masked": WidthOperator(_masked_hidden, _masked_inside, padded, padded_heads, _always, True, _one),
    "learned": WidthOperator(_learned_hidden, _learned_inside, repeated, _repeated_heads, _never, False, _one),
}


def key_value_map(query: AxisMap, query_units: Widening, units: Widening, operator: str) -> AxisMap:
    """The "out" map of key/value heads: their gradients come through the query heads of their groups.

    Exact where each copy serves every query head of its source's group to the same degree.
    """
    maps = WIDTH_OPERATORS[operator].inner(units)["out"]
    if operator != "duplicate":
        return maps
    group, wide = query_units.target // units.target, query_units.source // units.source
    gradients, exact = [], True
    for head, origin in enumerate(units.origin):
        degrees = [0.0] * wide
        for place in range(head * group, (head + 1) * group):
            degrees[query_units.origin[place] - origin * wide] += query.gradients[place]
        gradients.append(sum(degrees) / wide)
        exact = exact and max(degrees) - min(degrees) < 1e-12
    return AxisMap(maps.note, maps.source, maps.index, (), tuple(gradients), exact, maps.kept)


def more_vocabulary(source: int, target: int) -> AxisMap:
    """New tokens are the mean of the old ones, in the rows of the embedding and of the head."""
    return _map("mean", padded(source, target), MEAN)


def more_positions(source: int, target: int) -> AxisMap:
    """Embedded positions beyond the source's start again with its first one (Longformer, 2004.05150)."""
    units = repeated(source, target)
    return _map("repeat", units, FRESH, gradient=[1.0] * source + [0.0] * (target - source), kept=units.first)
