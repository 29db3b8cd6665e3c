"""How often, and on how much held-out text, a stage is evaluated where the schedule does not say.

The default costs at most MOST_SHARE of a stage's training FLOPs. The loss at the end of the stage comes first: savings
are made of it. So the text stays as large as it may be, and evaluations on the way are given up. Only where a stage is
too short for two evaluations (on entering it, at its end), the text is halved, down to FEWEST_TOKENS (or, after other
stages, FEWEST_LATE_TOKENS). The half is every other window of the whole, so that losses on either lie close.
"""

from __future__ import annotations

MOST_SHARE = 0.1
MOST_TOKENS = 65_536
FEWEST_TOKENS = 4_096
# What a short last stage, one that lets the rate fall, is evaluated on all the same where the whole run affords it.
FEWEST_LATE_TOKENS = 16_384
EVALUATIONS_PER_RUN = 20
# On entering a stage, and at its end.
LEAST_EVALUATIONS = 2


def default_tokens(training_flops: int, run_flops: int, token_flops: int) -> int:
    """Held-out tokens of one evaluation. training_flops: of the stage; run_flops: of its run up to the stage's end;
    token_flops: of a token at its end."""
    own, late = _affordable(training_flops, token_flops), _affordable(run_flops, token_flops)
    return max(own, min(late, FEWEST_LATE_TOKENS))


def _affordable(training_flops: int, token_flops: int) -> int:
    tokens = MOST_TOKENS
    while tokens > FEWEST_TOKENS and LEAST_EVALUATIONS * _flops(tokens, token_flops) > MOST_SHARE * training_flops:
        tokens //= 2
    return tokens


def default_every(
    stage_tokens: int, run_tokens: int, training_flops: int, tokens: int, token_flops: int, is_held_to_cost: bool
) -> int:
    """Training tokens from one evaluation to the next: EVALUATIONS_PER_RUN in a run, or what the stage can afford.

    Multiples count from the run's start, so that as many of them as can be afforded lie within the stage, or one less.
    A stage that can afford none on the way has one that is longer than the run.
    """
    wanted = max(1, run_tokens // EVALUATIONS_PER_RUN)
    affordable = int(MOST_SHARE * training_flops / _flops(tokens, token_flops)) - LEAST_EVALUATIONS
    if not is_held_to_cost:
        return wanted
    return max(wanted, -(-stage_tokens // affordable) if affordable > 0 else run_tokens + 1)


def _flops(tokens: int, token_flops: int) -> int:
    """Of one evaluation: a forward pass, a third of what training on as many tokens takes."""
    return max(1, tokens * token_flops // 3)
