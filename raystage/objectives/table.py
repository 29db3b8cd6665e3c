"""The objectives by name: what is known of each without torch. Plans, messages and reports read this table.

Adding an objective is one entry here, one file beside this one with its learner, and its options in
`config.objective`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raystage.units import Unit

Reads = Literal["text", "chats", "labels", "images"]
Head = Literal["", "classes", "pixels"]
Figure = Literal["perplexity", "accuracy"]


@dataclass(frozen=True)
class ObjectiveSpec:
    """learns: what a model learns to say. model: which models can learn it, by `Family.objective`, where it uses a
    language model's own head.

    judge: the objective whose loss and accuracy held-out data are judged by. module: where its learner is, for workers.
    options: its keys under `objective` in a schedule, beside the name. reads: what its sources must give: "text",
    "chats" (conversations), "labels" (samples with a class, texts or images) or "images". needs: further models that
    its learner is opened with, by their names in `Models`.

    unit: what progress is counted in; a sample of a language model is a window of tokens. head: the head that it needs
    of a model (`ModelShape.head`): "" for a language model's own, "classes" or "pixels". loss_unit: of the judge's
    loss. shows: the figures beside the loss that make sense for its judge. measures: further metrics that its
    judge finds, without those of single classes. keeps_documents: whether its learner can keep the documents of a
    window apart. in_chunks: whether its loss is the cross-entropy of a language model's head and no more, so that it
    can be computed some targets at a time (`objectives.by_head`).
    """

    name: str
    learns: str
    model: str
    judge: str
    module: str
    options: tuple[str, ...] = ()
    reads: Reads = "text"
    needs: tuple[str, ...] = ()
    unit: Unit = "tokens"
    head: Head = ""
    loss_unit: str = "nats per token"
    shows: tuple[Figure, ...] = ("perplexity", "accuracy")
    measures: tuple[str, ...] = ()
    keeps_documents: bool = False
    in_chunks: bool = False


CAUSAL_LM = "causal_lm"
# So many targets are scored at a time where the scores of a micro batch are never whole. It decides the last digits of
# a stage: another number needs another CODE_EPOCH.
CHUNK_TARGETS = 1024

OBJECTIVES: dict[str, ObjectiveSpec] = {
    one.name: one
    for one in (
        ObjectiveSpec(
            CAUSAL_LM, "the next token", "next token", CAUSAL_LM, "raystage.objectives.causal_lm", keeps_documents=True,
            in_chunks=True,
        ),
        ObjectiveSpec(
            "masked_lm", "masked tokens", "masked tokens", "masked_lm", "raystage.objectives.masked_lm",
            ("mask_share", "mask_token"), keeps_documents=True, in_chunks=True,
        ),
        ObjectiveSpec(
            "instruct", "the answers of conversations", "next token", "instruct", "raystage.objectives.instruct",
            reads="chats", keeps_documents=True, in_chunks=True,
        ),
        ObjectiveSpec(
            "own", "what a function of the user's own says", "next token", CAUSAL_LM, "raystage.objectives.own",
            ("function", "targets", "options"),
        ),
        ObjectiveSpec(
            "distillation", "what a teacher finds probable", "next token", CAUSAL_LM,
            "raystage.objectives.distillation", ("teacher", "temperature", "alpha", "top_k"), needs=("teacher",),
            keeps_documents=True,
        ),
        ObjectiveSpec(
            "classification", "the class of a text or an image", "", "classification",
            "raystage.objectives.classification", ("label_smoothing",), reads="labels", unit="samples", head="classes",
            loss_unit="nats per sample", shows=("accuracy",), measures=("macro_precision", "macro_recall", "macro_f1"),
        ),
        ObjectiveSpec(
            "denoising", "images without their noise", "", "denoising", "raystage.objectives.denoising",
            ("noise", "mask_share"), reads="images", unit="samples", head="pixels",
            loss_unit="mean square per pixel", shows=(),
        ),
    )
}  # fmt: skip
