"""Defaults of evaluation: how often a stage is evaluated, and on how much held-out text.

By default evaluation costs at most MOST_SHARE of a stage's training FLOPs. The loss at the end of a stage matters most,
because the savings are computed from it. So the amount of text stays as large as possible, and evaluations within the
stage are dropped first. Only where a stage is too short for two evaluations (at its start and at its end), the amount
of text is halved, down to FEWEST_TOKENS (or FEWEST_LATE_TOKENS after other stages). The half is every second window of
the whole, so that the losses on both are close.
"""

from __future__ import annotations

MOST_SHARE = 0.1
MOST_TOKENS = 65_536
FEWEST_TOKENS = 4_096
# A short last stage, such as one in which the rate decays, has at least this much where the whole run can afford it.
FEWEST_LATE_TOKENS = 16_384
EVALUATIONS_PER_RUN = 20
# At the start of a stage, and at its end.
LEAST_EVALUATIONS = 2


def default_tokens(training_flops: int, run_flops: int, token_flops: int) -> int:
    """Held-out tokens of one evaluation.

    training_flops: of the stage. run_flops: of its run up to the end of the stage. token_flops: of one token at its
    end.
    """
    own, late = _affordable(training_flops, token_flops), _affordable(run_flops, token_flops)
    return max(own, min(late, FEWEST_LATE_TOKENS))


def _affordable(training_flops: int, token_flops: int) -> int:
    tokens = MOST_TOKENS
    while tokens > FEWEST_TOKENS and LEAST_EVALUATIONS * _flops(tokens, token_flops) > MOST_SHARE * training_flops:
        tokens //= 2
    return tokens


def default_every(
    stage_duration: int, run_duration: int, training_flops: int, tokens: int, token_flops: int, is_held_to_cost: bool
) -> int:
    """Training tokens from one evaluation to the next: EVALUATIONS_PER_RUN in a run, or as many as the stage can
    afford.

    Multiples are counted from the start of the run, so a stage contains as many of them as it can afford, or one less.
    A stage that can afford none within it gets a distance that is longer than the run.
    """
    wanted = max(1, run_duration // EVALUATIONS_PER_RUN)
    affordable = int(MOST_SHARE * training_flops / _flops(tokens, token_flops)) - LEAST_EVALUATIONS
    if not is_held_to_cost:
        return wanted
    return max(wanted, -(-stage_duration // affordable) if affordable > 0 else run_duration + 1)


def _flops(tokens: int, token_flops: int) -> int:
    """FLOPs of one evaluation: a forward pass, a third of what training on as many tokens takes."""
    return max(1, tokens * token_flops // 3)
