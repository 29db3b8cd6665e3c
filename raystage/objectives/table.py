"""The objectives by name: what is known of each without torch. Plans, messages and reports read this table.

Adding an objective is one entry here, one file beside this one with its learner, and its options in
`config.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectiveSpec:
    """learns: what a model learns to say. model: which models can learn it, by `Family.objective`.

    judge: the objective whose loss and accuracy held-out text is judged by. module: where its learner is, for workers.
    options: its keys under `objective` in a schedule, beside the name. reads: what the documents of its source must be.
    needs: further models that its learner is opened with, by their names in `Models`.
    """

    name: str
    learns: str
    model: str
    judge: str
    module: str
    options: tuple[str, ...] = ()
    reads: str = "text"
    needs: tuple[str, ...] = ()


CAUSAL_LM = "causal_lm"

OBJECTIVES: dict[str, ObjectiveSpec] = {
    one.name: one
    for one in (
        ObjectiveSpec(CAUSAL_LM, "the next token", "next token", CAUSAL_LM, "raystage.objectives.causal_lm"),
        ObjectiveSpec(
            "masked_lm", "masked tokens", "masked tokens", "masked_lm", "raystage.objectives.masked_lm",
            ("mask_share", "mask_token"),
        ),
        ObjectiveSpec(
            "instruct", "the answers of conversations", "next token", "instruct", "raystage.objectives.instruct",
            reads="chats",
        ),
        ObjectiveSpec(
            "own", "what a function of the user's own says", "next token", CAUSAL_LM, "raystage.objectives.own",
            ("function", "targets", "options"),
        ),
        ObjectiveSpec(
            "distillation", "what a teacher finds probable", "next token", CAUSAL_LM,
            "raystage.objectives.distillation", ("teacher", "temperature", "alpha", "top_k"), needs=("teacher",),
        ),
    )
}  # fmt: skip
