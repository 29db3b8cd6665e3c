"""How many tokens a model knows."""

from __future__ import annotations

from raystage.config.stage import Model
from raystage.data.plan import StageText, vocabulary_problem
from raystage.errors import InputError
from raystage.objectives.plan import ObjectivePlan
from raystage.sources.corpus import LargestToken


def vocab_size(model: Model, data: StageText, objective: ObjectivePlan) -> int:
    """As written, else as large as the ids of the tokenizer require. Ids beyond those are padding."""
    size = objective.num_ids or data.tokenizer_size
    if size is None and data.largest_token is not None:
        _check_tokens(model.vocab_size, data.largest_token)
        return model.vocab_size
    if model.vocab_size is None:
        if size is None:
            problem = (
                f"missing; expected one more than the largest id of the tokenizer {data.tokenizer!r}, not known here"
            )
            raise InputError(problem, key="model.vocab_size")
        return size
    if size is not None and model.vocab_size < size:
        raise InputError(vocabulary_problem(model.vocab_size, data.tokenizer, size), key="model.vocab_size")
    return model.vocab_size


def _check_tokens(vocab_size: int | None, largest: LargestToken) -> None:
    """Refuse a vocabulary that lacks tokens of the text, where no tokenizer says how many there are."""
    if vocab_size is None or vocab_size <= largest.token:
        found = "missing" if vocab_size is None else f"found {vocab_size}"
        where = f"{largest.file} has the token {largest.token} at position {largest.position:,}"
        raise InputError(f"{found}; expected at least {largest.token + 1}: {where}", key="model.vocab_size")
