"""What the trials of a sweep share: their stages as a tree, each trained once; and which trial to start next.

Two trials need the same stage where its keys are equal. Stages that differ only in their length share more: the longer
one starts from the end of the shorter one, its prefix, as far as their rates agree (stage trees: Hippo, 2006.11972).
Trials are known by their number, from 0.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from raystage.plans.keys import key_at, trunk_key
from raystage.plans.learning_rate import prefix_signature
from raystage.plans.stage import StagePlan

Settings = tuple[str, ...]


@dataclass(frozen=True)
class Chain:
    """A trial: its stages in order, and for each of them what the trial's config sets."""

    stages: tuple[StagePlan, ...]
    settings: tuple[Settings, ...]

    @property
    def flops(self) -> int:
        return sum(stage.flops for stage in self.stages)


@dataclass(frozen=True)
class Node:
    """A stage that one or more trials need.

    own_flops: without the FLOPs of its prefix. label: what distinguishes it from other stages of that name.
    is_finished: whether the store has it. children: keys of the stages that follow, a prefix before the longer stage.
    """

    stage: StagePlan
    label: str
    trials: tuple[int, ...]
    prefix_key: str | None
    own_flops: int
    is_finished: bool
    children: tuple[str, ...]

    @property
    def flops_left(self) -> int:
        return 0 if self.is_finished else self.own_flops


@dataclass(frozen=True)
class Tree:
    """nodes: by key, parents and prefixes first. roots: keys of the first stages. order: numbers of the trials in the
    order to start them. longest_flops: FLOPs of the longest chain of unfinished stages that wait for each other. apart:
    why stages that differ only in length share nothing, one sentence for each."""

    nodes: Mapping[str, Node]
    roots: tuple[str, ...]
    flops_apart: int
    flops_shared: int
    flops_left: int
    longest_flops: int
    order: tuple[int, ...]
    apart: tuple[str, ...]

    @property
    def trials(self) -> int:
        return len(self.order)

    @property
    def sharing_factor(self) -> float:
        """FLOPs of every trial alone / FLOPs of every stage once."""
        return self.flops_apart / self.flops_shared


def build(chains: Sequence[Chain], finished: Collection[str] = frozenset()) -> Tree:
    """The tree of some trials. finished: keys of stages that are in the store."""
    stages = {stage.key: stage for chain in chains for stage in chain.stages}
    groups = _same_but_for_length(stages.values())
    prefixes = {longer: shorter for group in groups for longer, shorter in _prefixes(group).items()}
    children = _children(stages, groups)
    through: dict[str, list[int]] = defaultdict(list)
    for number, chain in enumerate(chains):
        for stage in chain.stages:
            through[stage.key].append(number)
    labels = _labels(chains, through)
    nodes = {
        key: Node(
            stage=stages[key],
            label=labels[key],
            trials=tuple(through[key]),
            prefix_key=prefixes.get(key),
            own_flops=stages[key].flops - (stages[prefixes[key]].flops if key in prefixes else 0),
            is_finished=key in finished,
            children=tuple(children.get(key, ())),
        )
        for key in _walk(children)
    }
    starts, ends = _times(nodes)
    return Tree(
        nodes=nodes,
        roots=tuple(children[None]),
        flops_apart=sum(chain.flops for chain in chains),
        flops_shared=sum(node.own_flops for node in nodes.values()),
        flops_left=sum(node.flops_left for node in nodes.values()),
        longest_flops=max(ends.values()),
        order=_order(chains, nodes, starts, ends),
        apart=tuple(_apart(groups, prefixes, through)),
    )


# --- what is shared inside a stage ------------------------------------------------------------


def _same_but_for_length(stages: Iterable[StagePlan]) -> list[list[StagePlan]]:
    """Stages of one trunk key together, the shortest first.

    Trunk keys are worked out only where cheaper facts that are among theirs agree, too.
    """
    alike: dict[tuple, list[StagePlan]] = defaultdict(list)
    for stage in stages:
        optimizer, operator = stage.training.optimizer, stage.growth.operator if stage.growth else None
        facts = stage.parent_key, stage.shape, operator, optimizer.name, optimizer.lr, stage.seed, stage.start
        alike[facts].append(stage)
    groups: dict[str, list[StagePlan]] = defaultdict(list)
    for candidates in alike.values():
        for stage in candidates:
            groups[trunk_key(stage) if len(candidates) > 1 else stage.key].append(stage)
    return [sorted(group, key=lambda stage: stage.steps) for group in groups.values()]


def _prefixes(group: Sequence[StagePlan]) -> dict[str, str]:
    """For a stage's key that of the longest other one of its trunk that it can start from; where there is one.

    Stages are looked up by the stem of their rates, so that a thousand lengths take a thousand look-ups.
    """
    known: dict[tuple, tuple[list[int], list[StagePlan]]] = defaultdict(lambda: ([], []))
    found: dict[str, str] = {}
    for stage in group if len(group) > 1 else ():
        candidates = [shorter for shorter in _candidates(stage, known) if _gives_to(shorter, stage)]
        if candidates:
            found[stage.key] = max(candidates, key=lambda shorter: shorter.steps).key
        ends, stages = known[prefix_signature(stage.rate, stage.start, stage.end)]
        ends.append(stage.end)
        stages.append(stage)
    return found


def _candidates(stage: StagePlan, known: Mapping[tuple, tuple[list[int], list[StagePlan]]]) -> Iterable[StagePlan]:
    """For every piece of the stage's rate the longest stage that ends in it and has its rate up to there."""
    for piece in stage.rate:
        if piece.end > stage.start and piece.start < stage.end:
            reach = min(piece.end, stage.end)
            ends, stages = known.get(prefix_signature(stage.rate, stage.start, reach), ((), ()))
            before = bisect_right(ends, min(reach, stage.end - 1))
            if before:
                yield stages[before - 1]


def _gives_to(shorter: StagePlan, longer: StagePlan) -> bool:
    return shorter.steps < longer.steps and key_at(longer, shorter.steps) == shorter.key


def _apart(
    groups: Iterable[Sequence[StagePlan]], prefixes: Mapping[str, str], through: Mapping[str, Sequence[int]]
) -> Iterable[str]:
    for group in groups:
        alone = [stage for stage in group if stage.key not in prefixes]
        if len(alone) > 1:
            numbers = sorted(through[stage.key][0] for stage in alone)
            listed = " and ".join(map(str, numbers)) if len(numbers) == 2 else _listed(numbers)
            yield f"trials {listed} share no part of stage {group[0].name}: {_why_apart(alone[0], alone[1])}"


def _listed(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:3]))
    return f"{first} and {len(numbers) - 3} more" if len(numbers) > 3 else first


def _why_apart(first: StagePlan, second: StagePlan) -> str:
    kind, other = first.training.lr_schedule.kind, second.training.lr_schedule.kind
    if kind != other:
        return f"one's rate is {kind}, the other's {other}"
    begins, ends = first.rate[0].start, first.rate[-1].end
    whole = "stage's" if (begins, ends) == (first.start, first.end) else "run's"
    if kind == "piecewise":
        return f"their rates go through different points, or through shares of the {whole} total tokens"
    if kind in ("cosine", "linear", "1-sqrt"):
        return f"under {kind} the rate depends on the {whole} total tokens"
    if first.rate[0] != second.rate[0] and first.rate[0].start_lr < first.rate[0].end_lr:
        return "their warm-ups are of different lengths"
    shapes = [stage.training.lr_schedule.decay_shape for stage in (first, second)]
    if shapes[0] != shapes[1]:
        return f"one's rate decays in the shape {shapes[0]}, the other's in {shapes[1]}"
    return f"under {kind} the rate decays in it, to an end that depends on the {whole} total tokens"


# --- the tree ---------------------------------------------------------------------------------


def _children(stages: Mapping[str, StagePlan], groups: Iterable[Sequence[StagePlan]]) -> dict[str | None, list[str]]:
    """The keys of the stages after each; those of one trunk side by side, the shortest first. None: the first ones."""
    position = {stage.key: place for place, stage in enumerate(stage for group in groups for stage in group)}
    children: dict[str | None, list[str]] = defaultdict(list)
    for key in sorted(stages, key=position.__getitem__):
        children[stages[key].parent_key].append(key)
    return dict(children)


def _walk(children: Mapping[str | None, Sequence[str]]) -> Iterable[str]:
    """All keys, a parent before its children, a prefix before the longer stages that start from it."""
    waiting = list(reversed(children[None]))
    while waiting:
        key = waiting.pop()
        yield key
        waiting += reversed(children.get(key, ()))


def _labels(chains: Sequence[Chain], through: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """What the configs of all trials through a stage say of it alike, unless a stage before it says so already."""
    labels: dict[str, str] = {}
    said: dict[str | None, frozenset[str]] = {None: frozenset()}
    for chain in chains:
        for depth, stage in enumerate(chain.stages):
            if stage.key not in labels:
                others = (chains[number].settings[depth] for number in through[stage.key])
                common = set(chain.settings[depth]).intersection(*others) - said[stage.parent_key]
                labels[stage.key] = ", ".join(text for text in chain.settings[depth] if text in common)
                said[stage.key] = said[stage.parent_key] | common
    return labels


def _times(nodes: Mapping[str, Node]) -> tuple[dict[str, int], dict[str, int]]:
    """When each stage would start and end if nothing had to wait but for parents and prefixes, in FLOPs."""
    starts: dict[str, int] = {}
    ends: dict[str, int] = {}
    for key, node in nodes.items():
        before = [one for one in (node.stage.parent_key, node.prefix_key) if one is not None]
        starts[key] = max((ends[one] for one in before), default=0)
        ends[key] = starts[key] + node.flops_left
    return starts, ends


def _order(
    chains: Sequence[Chain], nodes: Mapping[str, Node], starts: Mapping[str, int], ends: Mapping[str, int]
) -> tuple[int, ...]:
    """The trials in the order in which there is something to do for them, those with the most left first.

    Each stage is the task of the first trial through it, as the tree is walked, prefixes first. A trial is ready when
    the first stage that is its task can start. So trials that only wait for others' stages come after those, and a
    stage's prefix is the task of an earlier trial.
    """
    place = {key: position for position, key in enumerate(nodes)}
    walked = sorted(range(len(chains)), key=lambda number: place[chains[number].stages[-1].key])
    ready: dict[int, int] = {}
    taken: set[str] = set()
    for number in walked:
        keys = [stage.key for stage in chains[number].stages]
        task = next((key for key in keys if key not in taken), None)
        ready[number] = ends[keys[-1]] if task is None else starts[task]
        taken.update(keys)
    return tuple(sorted(ready, key=lambda number: (ready[number], -ends[chains[number].stages[-1].key], number)))


class TrialQueue:
    """The trials of a sweep in `order`, by number; each is started once. Chooses a trial that can train, not one that
    would only wait: a waiting trial holds a process and one of the places of `max_concurrent`.

    chains: keys of the stages of each trial. prefixes: by the key of a stage, the key of the shorter stage that it can
    continue. finished: keys of stages that nobody waits for. A running trial owns its unfinished stages until it ends;
    a trial that needs one of them next, or can continue one, comes later.
    """

    def __init__(
        self,
        order: Sequence[int],
        chains: Mapping[int, Sequence[str]],
        prefixes: Mapping[str, str],
        finished: Collection[str] = (),
    ) -> None:
        self._order, self._chains, self._prefixes = tuple(order), chains, prefixes
        self._places = {number: place for place, number in enumerate(self._order)}
        self._ready = list(range(len(self._order)))
        self._blocked: dict[str, list[int]] = defaultdict(list)
        self._claims: Counter[str] = Counter()
        self._finished = set(finished)
        self.begun: set[int] = set()

    @property
    def is_empty(self) -> bool:
        return len(self.begun) == len(self._order)

    def take(self) -> int | None:
        """The first trial in order that does not have to wait; it counts as running from now on. None if all would
        wait."""
        while self._ready:
            number = self._order[heapq.heappop(self._ready)]
            if number in self.begun:
                continue
            obstacle = self._obstacle(number)
            if obstacle is None:
                self.begin(number)
                return number
            self._blocked[obstacle].append(number)
        return None

    def begin(self, number: int) -> None:
        """A trial runs, in whatever order."""
        self.begun.add(number)
        self._claims.update(self._left(number))

    def finish(self, key: str) -> None:
        """A stage is finished."""
        self._finished.add(key)
        self._claims.pop(key, None)
        self._free(key)

    def end(self, number: int) -> None:
        """A trial has ended, finished or not. Nobody owns its stages any more."""
        for key in self._left(number):
            self._claims[key] -= 1
            if self._claims[key] <= 0:
                del self._claims[key]
                self._free(key)

    def _left(self, number: int) -> Iterator[str]:
        return (key for key in self._chains[number] if key not in self._finished)

    def _obstacle(self, number: int) -> str | None:
        """The key of the stage that a trial would have to wait for at once; None if there is none."""
        first = next(self._left(number), None)
        while first is not None and first not in self._claims:
            first = None if first in self._finished else self._prefixes.get(first)
        return first

    def _free(self, key: str) -> None:
        for number in self._blocked.pop(key, ()):
            heapq.heappush(self._ready, self._places[number])
