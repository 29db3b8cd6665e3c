"""What cannot be asked of a stage that gets another head than the stage before."""

from __future__ import annotations

from raystage.errors import InputError
from raystage.growth.checks import exchanges_head
from raystage.models.shape import ModelShape
from raystage.planning.draft import StageDraft

# Limits on figures that a certificate lacks then.
_OF_ANSWERS = ("loss_increase_below", "max_logit_difference_below", "gradient_error_below")


def check_limits(before: ModelShape, draft: StageDraft) -> None:
    """Refuse a limit on what a certificate cannot compare. Raises InputError."""
    if not exchanges_head(before, draft.shape):
        return
    asked = {"accept": draft.accept, "grow.require": draft.grow.require if draft.grow else None}
    for section, limits in asked.items():
        for field in _OF_ANSWERS:
            limit = getattr(limits, field, None)
            if limit is not None:
                found = f"found {limit} in a stage that gets another head than the one before"
                problem = f"{found}; expected none, for what two heads say cannot be compared"
                raise InputError(problem, key=f"{section}.{field}")
