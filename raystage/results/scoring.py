"""What a stage's text is sorted by, where that is the loss of documents under a model, and what that took."""

from __future__ import annotations

from dataclasses import dataclass, field

from raystage.errors import CheckpointError


@dataclass(frozen=True)
class ScoringRecord:
    """model: the name of its stage, empty where no documents were scored for this stage: it reads on in an order that
    an earlier one has made. documents, tokens: that were scored, and flops: of that, whoever has done it. seconds: that
    one worker would have taken, divided by their number. energy_joules: None where not all of it was measured.

    digests: by name in `Reading` those of the losses of all sorted texts up to here.
    """

    model: str = ""
    documents: int = 0
    tokens: int = 0
    flops: int = 0
    seconds: float = 0.0
    energy_joules: float | None = None
    digests: dict[str, str] = field(default_factory=dict)


def check_same_order(before: ScoringRecord | None, now: ScoringRecord | None, what: str) -> None:
    """Refuse to read on in another order than before. what: has read in the order before.

    Losses that were computed a second time, on another device, may differ in their last digits, and so sort documents
    in another way. Raises CheckpointError.
    """
    known = before.digests if before else {}
    for name, digest in now.digests.items() if now else ():
        if known.get(name, digest) != digest:
            found = f"sorted its text by other losses ({known[name][:12]}) than the store now has ({digest[:12]})"
            raise CheckpointError(f"{what} {found}; expected the same, or the stage trained from its start")
