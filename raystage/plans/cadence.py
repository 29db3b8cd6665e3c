"""Defaults of evaluation: how often a stage is evaluated, and on how much held-out text.

By default evaluation costs at most MOST_SHARE of a stage's training FLOPs. The loss at the end of a stage matters most,
because the savings are computed from it. So the amount of text stays as large as possible, and evaluations within the
stage are dropped first. Only where a stage is too short for two evaluations (at its start and at its end), the amount
of text is halved, down to FEWEST_TOKENS (or FEWEST_LATE_TOKENS after other stages). The half is every second window of
the whole, so that the losses on both are close.
"""

from __future__ import annotations

from dataclasses import dataclass

from raystage.units import SAMPLES, TOKENS, Unit

MOST_SHARE = 0.1
MOST_TOKENS = 65_536
FEWEST_TOKENS = 4_096
# A short last stage, such as one in which the rate decays, has at least this much where the whole run can afford it.
FEWEST_LATE_TOKENS = 16_384
EVALUATIONS_PER_RUN = 20
# At the start of a stage, and at its end.
LEAST_EVALUATIONS = 2


@dataclass(frozen=True)
class Amounts:
    """How much held-out data an evaluation has. fewest_late: of a short stage after others."""

    most: int
    fewest: int
    fewest_late: int


# A token of a text is one of many in its window; a sample is one answer.
AMOUNTS: dict[Unit, Amounts] = {
    TOKENS: Amounts(MOST_TOKENS, FEWEST_TOKENS, FEWEST_LATE_TOKENS),
    SAMPLES: Amounts(8_192, 512, 2_048),
}


def default_amount(training_flops: int, run_flops: int, unit_flops: int, unit: Unit) -> int:
    """Held-out tokens or samples of one evaluation.

    training_flops: of the stage. run_flops: of its run up to the end of the stage. unit_flops: of one token or sample
    at its end.
    """
    amounts = AMOUNTS[unit]
    own, late = (_affordable(flops, unit_flops, amounts) for flops in (training_flops, run_flops))
    return max(own, min(late, amounts.fewest_late))


def _affordable(training_flops: int, unit_flops: int, amounts: Amounts) -> int:
    found = amounts.most
    while found > amounts.fewest and LEAST_EVALUATIONS * _flops(found, unit_flops) > MOST_SHARE * training_flops:
        found //= 2
    return found


def default_every(
    stage_duration: int, run_duration: int, training_flops: int, amount: int, unit_flops: int, is_held_to_cost: bool
) -> int:
    """Training tokens or samples from one evaluation to the next: EVALUATIONS_PER_RUN in a run, or as many as the stage
    can afford.

    Multiples are counted from the start of the run, so a stage contains as many of them as it can afford, or one less.
    A stage that can afford none within it gets a distance that is longer than the run.
    """
    wanted = max(1, run_duration // EVALUATIONS_PER_RUN)
    affordable = int(MOST_SHARE * training_flops / _flops(amount, unit_flops)) - LEAST_EVALUATIONS
    if not is_held_to_cost:
        return wanted
    return max(wanted, -(-stage_duration // affordable) if affordable > 0 else run_duration + 1)


def _flops(amount: int, unit_flops: int) -> int:
    """FLOPs of one evaluation: a forward pass, a third of what training on as much takes."""
    return max(1, amount * unit_flops // 3)
