"""What schedules read, looked up once: documents, tokenizers and models to start from, each by its fingerprint.

To identify a corpus takes reading all of it. Whoever plans many schedules keeps one `Sources` for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from raystage.corpus import BYTE_TOKENIZER, Corpus, read_corpus, tokenizer_fingerprint
from raystage.errors import InputError
from raystage.initial import InitPlan, find_init
from raystage.schedule import Data, Init
from raystage.trained_on import TrainingText


@dataclass(frozen=True)
class DataPlan:
    """What is read. `fingerprint` identifies the text itself and `tokenizer_fingerprint` the tokenizer
    ("bytes", a hub name, or the hash of a folder's files), wherever they lie. text: what is trained on."""

    source: str
    path: tuple[str, ...]
    tokenizer: str
    validation_fraction: float
    fingerprint: str
    tokenizer_fingerprint: str = BYTE_TOKENIZER
    text: TrainingText | None = field(default=None, compare=False, repr=False)

    def facts(self) -> dict[str, Any]:
        """What of it decides the tokens: text, tokenizer and split by what they are, not by where they lie."""
        return {
            "fingerprint": self.fingerprint,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            "validation_fraction": self.validation_fraction,
        }


@dataclass
class Sources:
    """What was looked up so far. It is for planning alone: a file that changes afterwards is not looked at again."""

    _corpora: dict[tuple[str, tuple[str, ...]], Corpus] = field(default_factory=dict)
    _data: dict[Data, DataPlan] = field(default_factory=dict)
    _inits: dict[Init, InitPlan] = field(default_factory=dict)

    def data(self, data: Data) -> DataPlan:
        """What a stage reads. Raises InputError, with the stage's own key."""
        if data not in self._data:
            self._data[data] = self._look_up(data)
        return self._data[data]

    def corpus(self, source: str, path: tuple[str, ...]) -> Corpus:
        """The documents of a source. Raises InputError."""
        if (source, path) not in self._corpora:
            self._corpora[source, path] = read_corpus(source, path)
        return self._corpora[source, path]

    def init(self, init: Init) -> InitPlan:
        """What a run starts from. Raises InputError."""
        if init not in self._inits:
            self._inits[init] = find_init(init)
        return self._inits[init]

    def _look_up(self, data: Data) -> DataPlan:
        if data.source == "text" and not data.path:
            raise InputError("missing; expected a file or folder, or a list of them, for source: text", key="data.path")
        if data.source != "text" and data.path:
            problem = f"found a path, but source {data.source} reads none; expected source: text, or path: []"
            raise InputError(problem, key="data.path")
        corpus = self.corpus(data.source, data.path)
        fraction = data.validation_fraction
        _check_split(corpus, fraction)
        return DataPlan(
            source=data.source,
            path=data.path,
            tokenizer=data.tokenizer,
            validation_fraction=fraction,
            fingerprint=corpus.fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(data.tokenizer),
            text=TrainingText.of(corpus.fingerprint, fraction, corpus.split(fraction)[0]),
        )


def _check_split(corpus: Corpus, fraction: float) -> None:
    """Refuse a split with nothing on one side: documents are held out by their hash, so few may fall on one."""
    training, held_out = corpus.split(fraction)
    if training and held_out:
        return
    count, working = len(corpus.documents), corpus.working_fraction()
    if working is None:
        found = "1 document" if count == 1 else f"{count} documents of one and the same text"
        raise InputError(f"found {found}; expected two or more, some of them to hold out", key="data.path")
    side = "holds out none" if training else "leaves none for training"
    problem = (
        f"found {fraction:g}, which {side} of {count} documents; expected more documents, or for example {working}"
    )
    raise InputError(problem, key="data.validation_fraction")
