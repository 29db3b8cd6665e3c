"""Depth: where each layer of a deeper model comes from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from raystage.units import shown


@dataclass(frozen=True)
class LayerOrigin:
    """The source layer of layer `i` of the target; source None: the layer is freshly initialised.

    A `new` layer starts with an optimizer state of zeros. `silenced`: its projections onto the residual stream start at
    zero.
    """

    source: int | None
    new: bool = False
    silenced: bool = False


@dataclass(frozen=True)
class GrowthOptions:
    """Options of operators; None where one is not given.

    layers: the source layer of every target layer. block: how many layers are repeated together. grow_tokens: the
    tokens over which a mask opens. fit_steps: the steps for which a map is fitted.
    """

    layers: tuple[int, ...] | None = None
    block: int | None = None
    grow_tokens: int | None = None
    fit_steps: int | None = None

    def given(self) -> dict[str, object]:
        """The options that are given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


NO_OPTIONS = GrowthOptions()
FIT_STEPS = 100

# A field of the target's shape, an option's name or "operator", and what is wrong with it (found and expected).
Refusal = tuple[str, str]


def _as_given(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    return options


@dataclass(frozen=True)
class DepthOperator:
    """A way to grow depth.

    layers(l, L, options): the L layer origins of the target, from l source layers; options are complete. refuse(l, L,
    options): why it cannot grow l to L layers, or None. complete(l, L, options): the options with defaults. fewest: the
    fewest source layers that it can add layers to. is_even: it repeats layers evenly over the model, as `layers` says
    of layers and of whole periods of them alike.
    """

    layers: Callable[[int, int, GrowthOptions], tuple[LayerOrigin, ...]]
    refuse: Callable[[int, int, GrowthOptions], Refusal | None]
    complete: Callable[[int, int, GrowthOptions], GrowthOptions] = _as_given
    fewest: int = 1
    is_even: bool = False

    def origins(self, sources: int, targets: int, options: GrowthOptions, period: int) -> tuple[LayerOrigin, ...]:
        """The layer origins. period: layers differ by their place in so many (windows in some): where whole periods
        are added, layers are repeated by whole periods, so that every copy has its origin's place in one. Layers
        beyond whole periods stay on top."""
        blocks, rest = divmod(sources, period)
        if period == 1 or not self.is_even or options.layers or not blocks or (targets - sources) % period:
            return self.layers(sources, targets, options)
        of_blocks = self.layers(blocks, targets // period, options)
        repeated = (replace(one, source=one.source * period + i) for one in of_blocks for i in range(period))
        return (*repeated, *(LayerOrigin(layer) for layer in range(sources - rest, sources)))

    def completed(self, sources: int, targets: int, options: GrowthOptions, period: int) -> GrowthOptions:
        """The options with defaults. Where `identity` repeats whole periods, it gets their order as an option."""
        if period > 1 and self.complete is _with_spread and targets > sources > 0:
            origins = self.origins(sources, targets, options, period)
            return replace(options, layers=tuple(one.source for one in origins))
        return self.complete(sources, targets, options)


# --- lists of source layers ---------------------------------------------------------------------


def stack(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `i mod l`: 3 -> 6 is 0 1 2 0 1 2. Progressive stacking (Gong 2019), G_stack (2405.15319)."""
    return tuple(i % sources for i in range(targets))


def interleave(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `floor(i*l/L)`: 3 -> 6 is 0 0 1 1 2 2. Shen (2203.06211), Bu (2511.04981)."""
    return tuple(i * sources // targets for i in range(targets))


def spread(sources: int, targets: int) -> tuple[int, ...]:
    """Layer i from `ceil((i+1)*l/L) - 1`: each of the `n = L - l` new layers stands right after the one it copies,
    evenly spread over the source. 8 -> 10 is 0 1 2 3 3 4 5 6 7 7, and 3 -> 6 is 0 0 1 1 2 2. LLaMA-Pro (2401.02415),
    where `n` divides `l`; for whole factors it is `interleave`."""
    return tuple(-(-(i + 1) * sources // targets) - 1 for i in range(targets))


def middle(sources: int, targets: int, block: int) -> tuple[int, ...]:
    """Of `n = floor(l/b)` blocks counted from the bottom, block `ceil(n/2)` is repeated in its place.

    6 -> 8 in blocks of 2 is 0 1 2 3 2 3 4 5, and 4 -> 6 is 0 1 0 1 2 3: of an even number of blocks, the lower of the
    two in the middle. Layers beyond a whole number of blocks stay on top. MIDAS (2409.19044), where the source is
    always whole blocks and one block is added at a time.
    """
    end = block * math.ceil(sources // block / 2)
    return (*range(end), *(end - block + i % block for i in range(targets - sources)), *range(end, sources))


def middle_block(sources: int, targets: int) -> int:
    """The largest block that divides source and target: MIDAS's own from n blocks to n + 1, so 4 -> 6 is 2."""
    return max(1, math.gcd(sources, targets))


def last(sources: int, targets: int) -> tuple[int, ...]:
    """All layers, then the last `L - l` again, at most all of them: 4 -> 6 is 0 1 2 3 2 3.

    Gradual stacking, as MIDAS (2409.19044) tells it; one of G_stack's (2405.15319) partial stackings.
    """
    return (*range(sources), *range(2 * sources - targets, sources))


def first(sources: int, targets: int) -> tuple[int, ...]:
    """The first `L - l` layers, at most all of them, then all: 4 -> 6 is 0 1 0 1 2 3. The mirror image of `last`."""
    return (*range(targets - sources), *range(sources))


# --- origins ------------------------------------------------------------------------------------


def _copies(sources: tuple[int, ...]) -> tuple[LayerOrigin, ...]:
    return tuple(LayerOrigin(source) for source in sources)


def _stack(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(stack(sources, targets))


def _interleave(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(interleave(sources, targets))


def _middle(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(middle(sources, targets, options.block))


def _last(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(last(sources, targets))


def _first(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(first(sources, targets))


def _layers(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    return _copies(options.layers)


def _random(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    """The source's layers in their order at the bottom, where they were trained, and the new ones on top of them."""
    return (*_copies(tuple(range(sources))), *(LayerOrigin(None, new=True) for _ in range(targets - sources)))


def _identity(sources: int, targets: int, options: GrowthOptions) -> tuple[LayerOrigin, ...]:
    """The listed order, or LLaMA-Pro's: the first copy of each source layer is kept, the others are silenced."""
    origins, kept = [], set()
    for source in spread(sources, targets) if options.layers is None else options.layers:
        origins.append(LayerOrigin(source, new=source in kept, silenced=source in kept))
        kept.add(source)
    return tuple(origins)


def _with_block(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    return options if options.block else replace(options, block=middle_block(sources, targets))


def _with_spread(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    """For a factor that is not whole the order becomes an option, because older versions used `interleave` there. So
    keys and the description of a grown model tell the two apart."""
    is_whole = sources == 0 or targets % sources == 0
    return options if options.layers or is_whole else replace(options, layers=spread(sources, targets))


def _with_fit_steps(sources: int, targets: int, options: GrowthOptions) -> GrowthOptions:
    return options if options.fit_steps else replace(options, fit_steps=FIT_STEPS)


def _not_fewer(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if targets >= sources:
        return None
    return "num_layers", f"found {targets} layers after {sources}; expected at least {sources}"


def _multiple(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if targets == sources or (targets > sources and targets % sources == 0):
        return None
    fitting = ", ".join(str(sources * factor) for factor in (1, 2, 3, 4))
    return "num_layers", f"found {targets} layers after {sources}; expected a multiple to stack ({fitting}, ...)"


def _at_most_twofold(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    if sources <= targets <= 2 * sources:
        return None
    return "num_layers", f"found {targets} layers after {sources}; expected {sources} to {2 * sources}"


def _whole_blocks(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    added, block = targets - sources, options.block
    if added < 0 or block is None:
        return _not_fewer(sources, targets, options)
    if block > sources:
        return "block", f"found {block}; expected at most the source's {sources} layers"
    if added % block:
        return "block", f"found {block}, which does not divide the {added} new layers; expected a divisor of {added}"
    return None


def _listed(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    layers, there = options.layers, f"the source's layers (0 to {sources - 1})"
    if layers is None:
        return "layers", f"missing; expected a list of {targets} of {there}"
    if len(layers) != targets:
        return "layers", f"found a list of {len(layers)}; expected {targets} entries, one for each of num_layers"
    for layer in layers:
        if not 0 <= layer < sources:
            return "layers", f"found {layer}; expected {there}"
    return None


def _kept_in_order(sources: int, targets: int, options: GrowthOptions) -> Refusal | None:
    """Whether the first occurrences in a list are the old model: all of its layers, in their order."""
    wrong = _not_fewer(sources, targets, options)
    if wrong or options.layers is None:
        return wrong
    wrong = _listed(sources, targets, options)
    firsts = tuple(dict.fromkeys(options.layers))
    if wrong or firsts == tuple(range(sources)):
        return wrong
    found = f"found layers that first come in the order {shown(list(firsts))}"
    return "layers", f"{found}; expected all of 0 to {sources - 1} in theirs, since the first of each is the kept one"


DEPTH_OPERATORS = {
    "stack": DepthOperator(_stack, _multiple),
    "interleave": DepthOperator(_interleave, _not_fewer, is_even=True),
    "middle": DepthOperator(_middle, _whole_blocks, complete=_with_block),
    "last": DepthOperator(_last, _at_most_twofold),
    "first": DepthOperator(_first, _at_most_twofold),
    "layers": DepthOperator(_layers, _listed),
    "random": DepthOperator(_random, _not_fewer, fewest=0),
    "identity": DepthOperator(_identity, _kept_in_order, complete=_with_spread, is_even=True),
    "masked": DepthOperator(_random, _not_fewer, fewest=0),
    "learned": DepthOperator(_interleave, _not_fewer, complete=_with_fit_steps, is_even=True),
}
