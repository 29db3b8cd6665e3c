"""`classification`: the class of a text or an image.

The loss is the cross-entropy of the right class. Held-out samples give one matrix of counts (right class by answered
class), which is added up over batches and workers. Accuracy, and precision, recall and F1 of every class and their
means over the classes (macro) follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from raystage.objectives.images import pixels_of
from raystage.objectives.judging import summed_loss
from raystage.objectives.learner import Answer, Arrays, Batch, Figures, Model, Reader

# With more classes than this, only the means over the classes are reported.
MOST_CLASSES_SHOWN = 100


@dataclass(frozen=True)
class Classification:
    """Every sample is one target.

    classes: their names, in the order of their numbers. label_smoothing: of the training loss only; held-out samples
    are judged without.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0

    def batch(self, reader: Reader, first: int, count: int, length: int) -> Arrays:
        """Images: "image" and "label". Texts: "tokens" and "mask", both int64, and "label"."""
        found = reader.read(first, count, length)
        if "image" in found:
            return {"image": pixels_of(found["image"]), "label": found["label"]}
        return {"tokens": found["tokens"], "mask": found["mask"].astype(np.int64), "label": found["label"]}

    def num_targets(self, reader: Reader, first: int, count: int, length: int) -> int:
        return count

    def inputs(self, batch: Batch) -> Mapping[str, Any]:
        if "image" in batch:
            return {"pixel_values": batch["image"]}
        return {"input_ids": batch["tokens"], "attention_mask": batch["mask"]}

    def answer(self, model: Model, batch: Batch) -> Answer:
        return Answer(model(**self.inputs(batch)).logits.float(), batch["label"])

    def loss(self, model: Model, batch: Batch) -> torch.Tensor:
        return summed_loss(self.answer(model, batch), self.label_smoothing)

    def summed_loss(self, answer: Answer) -> torch.Tensor:
        return summed_loss(answer)

    def sums(self, answer: Answer) -> torch.Tensor:
        """The loss, and for each right class the counts of all answered ones."""
        number = len(self.classes)
        cells = answer.targets * number + answer.outputs[:, :number].argmax(-1)
        counts = torch.bincount(cells, minlength=number * number)
        return torch.cat([summed_loss(answer).double().reshape(1), counts.double()])

    def figures(self, means: Sequence[float]) -> Figures:
        counts = np.array(means[1:]).reshape(len(self.classes), len(self.classes))
        return Figures(float(counts.trace()), scores_of(counts, self.classes))


def scores_of(counts: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    """Precision, recall and F1 by class (`f1/<class>`), and their means over the classes (`macro_f1`).

    counts: by right class and answered class. A class that is never right and never answered does not count. Precision
    is 0 for a class that is never answered, recall for one that is never right, as in scikit-learn.
    """
    hits, answered, right = np.diag(counts), counts.sum(0), counts.sum(1)
    by_class = {
        "precision": _ratio(hits, answered),
        "recall": _ratio(hits, right),
        "f1": _ratio(2 * hits, answered + right),
    }
    there = np.flatnonzero(answered + right)
    found = {f"macro_{name}": float(values[there].mean()) for name, values in by_class.items()}
    if len(classes) <= MOST_CLASSES_SHOWN:
        found |= {f"{name}/{classes[one]}": float(values[one]) for name, values in by_class.items() for one in there}
    return found


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def open_learner(classes: Sequence[str], label_smoothing: float = 0.0) -> Classification:
    return Classification(tuple(classes), label_smoothing)
