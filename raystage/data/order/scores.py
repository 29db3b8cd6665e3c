"""The scores of documents that a curriculum sorts them by, on a worker.

Numbers of a column are read once by each machine and kept in a file that is named by their digest, which the plan
knows: a file that is damaged, or of other numbers, is not used.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import numpy as np

from raystage.data.order.curriculum import CurriculumPlan, digest_of_scores
from raystage.data.order.documents import DocumentSpans
from raystage.data.plan import DataPlan
from raystage.errors import InputError
from raystage.files.local import user_cache
from raystage.sources.corpus import SCORE_KEY
from raystage.sources.table import read_corpus


def scores_of(data: DataPlan, curriculum: CurriculumPlan, documents: DocumentSpans) -> np.ndarray:
    """Of the documents to train on, in their order: of shape (documents,). Raises InputError where this machine has
    other numbers than were planned with."""
    if curriculum.column is None:
        return documents.lengths
    planned = curriculum.digest(data.content)
    path = user_cache("scores") / f"{planned}.f8"
    kept = _kept(path)
    if kept is not None and digest_of_scores(kept) == planned:
        return kept
    corpus = read_corpus(data.source, data.path, data.options)
    scores = corpus.scores(curriculum.column, data.validation_fraction)
    if digest_of_scores(scores) != planned:
        problem = f"the numbers in {curriculum.column!r} on this machine are not those that were planned with"
        raise InputError(f"{problem}; expected the same files everywhere", key=SCORE_KEY)
    _keep(path, scores)
    return scores


def _kept(path: Path) -> np.ndarray | None:
    try:
        return np.frombuffer(path.read_bytes(), np.float64)
    except (OSError, ValueError):
        return None


def _keep(path: Path, scores: np.ndarray) -> None:
    """Where that is not possible, the numbers are read again the next time."""
    work = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.write_bytes(scores.tobytes())
            os.replace(work, path)
        finally:
            work.unlink(missing_ok=True)
