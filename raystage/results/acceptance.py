"""Whether a growth kept what the schedule's `grow.require` asked of it."""

from __future__ import annotations

from raystage.config.schedule import Require
from raystage.errors import BrokenPromise
from raystage.plan.build import StagePlan
from raystage.results.record import Certificate, GrowthRecord


def check_promises(stage: StagePlan, growth: GrowthRecord | None) -> None:
    """Raises BrokenPromise where the certificate of a stage's growth is not below what was asked."""
    if stage.growth is None or growth is None:
        return
    found = broken(stage.growth.require, growth.certificate)
    if found:
        raise BrokenPromise(
            f"stage {stage.name}: growing by {growth.operator} broke its promise: {'; '.join(found)}. "
            f"The stage before it is kept. Try {_other(growth.certificate)}, or promise less in grow.require"
        )


def broken(require: Require, certificate: Certificate) -> list[str]:
    """What was promised and found, for each promise that was not kept. What was not measured was not kept."""
    figures = {
        "loss_increase_below": certificate.loss_increase,
        "max_logit_difference_below": certificate.max_logit_difference,
        "gradient_error_below": certificate.gradient_error,
    }
    limits = require.model_dump(exclude_none=True)
    return [
        f"{promise}: expected less than {limit:g}, found {_shown(figures[promise])}"
        for promise, limit in limits.items()
        # Not the other way round: NaN is below nothing.
        if figures[promise] is None or not figures[promise] < limit
    ]


def _shown(figure: float | None) -> str:
    return "none (the operator predicts no gradient exactly)" if figure is None else f"{figure:.3g}"


def _other(certificate: Certificate) -> str:
    """An operator that claims no exactness cannot promise much; one that does and fails is worth a look."""
    if certificate.exact:
        return "fp32 if this is bf16"
    return "an operator that is exact (identity for depth, duplicate or zero_pad for width)"
