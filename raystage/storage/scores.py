"""The losses of documents under the model of a stage, kept beside the stage: stages/<key>/scores/<text>/<part>.

Each part is written at once, when it is complete, and begins with a line of JSON that has a checksum. So a part that is
damaged or cut off counts as missing, and what was scored before workers stopped is found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np

from raystage.files.filesystem import Folder
from raystage.storage.store import Store

SCORES = "scores"
# How documents are scored. Raise it when that changes: older parts are then scored anew.
_RULE = 1
_LONGEST_HEAD = 1000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoredPart:
    """losses: of documents in a row, in nats per token: float64 of shape (documents,). seconds: of one worker."""

    losses: np.ndarray
    seconds: float


class KeptScores:
    """The losses of the documents of one text under one model, in `sizes` parts of so many documents each.

    key: of the stage that ends with the model. text: `DataPlan.content`.
    """

    def __init__(self, store: Store, key: str, text: str, sizes: list[int]) -> None:
        self.folder: Folder = store.stage_folder(key) / SCORES / text
        self.sizes = sizes

    def read(self, number: int) -> ScoredPart | None:
        """A part; None where it is missing, damaged or of other documents."""
        try:
            content = self.folder.read(self._name(number), _LONGEST_HEAD + 8 * self.sizes[number])
            return _part(content, self.sizes[number])
        except FileNotFoundError:
            return None
        except ValueError as error:
            _logger.warning("%s: %s; scored again", (self.folder / self._name(number)).uri, error)
            return None

    def missing(self) -> list[int]:
        """The numbers of the parts that are still to be scored."""
        return [number for number in range(len(self.sizes)) if self.read(number) is None]

    def write(self, number: int, part: ScoredPart) -> None:
        """Keep a part. One that another worker has kept meanwhile stays."""
        content = _content(part)
        if not self.folder.write_new(self._name(number), content) and self.read(number) is None:
            self.folder.write_whole(self._name(number), content)

    def _name(self, number: int) -> str:
        return f"{number:05}-of-{len(self.sizes):05}.losses"


def _content(part: ScoredPart) -> bytes:
    values = part.losses.astype("<f8").tobytes()
    head = {"rule": _RULE, "documents": len(part.losses), "seconds": part.seconds}
    return json.dumps({**head, "checksum": _checksum(head, values)}).encode() + b"\n" + values


def _part(content: bytes, documents: int) -> ScoredPart:
    """Raises ValueError where the content is not that of a part with so many documents."""
    line, _, values = content.partition(b"\n")
    head: Any = None
    with contextlib.suppress(ValueError):
        head = json.loads(line)
    if not isinstance(head, dict) or head.pop("checksum", None) != _checksum(head, values):
        raise ValueError("damaged")
    if (head.get("rule"), head.get("documents")) != (_RULE, documents) or len(values) != 8 * documents:
        raise ValueError(f"found the losses of {head.get('documents')} documents; expected those of {documents}")
    losses, seconds = np.frombuffer(values, "<f8"), head.get("seconds")
    if not isinstance(seconds, float) or not np.isfinite([seconds, *losses]).all():
        raise ValueError("found what is no finite number")
    return ScoredPart(losses, seconds)


def _checksum(head: dict[str, Any], values: bytes) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode() + values).hexdigest()
