"""What schedules read, looked up once: documents, tokenizers and models to start from, each with its fingerprint.

Identifying a corpus takes reading all of it. So whoever plans many schedules keeps one `Sources` for all of them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

from raystage.config.schedule import Init
from raystage.config.stage import Data, MixtureEntry, TextSource
from raystage.config.types import REST
from raystage.data.chat_template import check_documents, find_template
from raystage.data.plan import DataPlan, MixturePart, MixturePlan, StageText
from raystage.data.tokenizer_files import NOTHING_KNOWN, TokenizerFacts, no_end, read_tokenizer
from raystage.data.tokenizer_names import BYTE_TOKENIZER, BYTE_VOCABULARY, NO_TOKENIZER, tokenizer_fingerprint
from raystage.data.trained_on import TrainingText
from raystage.errors import InputError
from raystage.lazy import huggingface_hub
from raystage.models import hub
from raystage.objectives.table import Reads
from raystage.planning.shared import Shared
from raystage.plans.initial import InitPlan, find_init
from raystage.sources.corpus import DEFAULTS, Corpus, LargestToken, Side, SourceOptions
from raystage.sources.labelled.asked import check_agreement, check_classes, check_pixels, columns_asked
from raystage.sources.table import SOURCES, read_corpus, sources_with
from raystage.units import shown


@dataclass
class Sources:
    """Everything that was looked up so far. For planning only: a file that changes afterwards is not looked at again.

    with_code: whether the functions that a schedule names are imported, to check that they can be called.
    """

    with_code: bool = True
    _corpora: dict[tuple[str, tuple[str, ...], SourceOptions], Corpus] = field(default_factory=dict)
    _tokenizers: dict[str, TokenizerFacts] = field(default_factory=dict)
    _data: dict[tuple[Data, Reads], StageText] = field(default_factory=dict)
    _inits: dict[Init, InitPlan] = field(default_factory=dict)
    _pinned: dict[str, str] = field(default_factory=dict)
    _overlaps: dict[tuple[str, str], int] = field(default_factory=dict)
    _code: dict[str, str] = field(default_factory=dict)
    shared: Shared = field(default_factory=Shared)

    def data(self, data: Data, reads: Reads = "text") -> StageText:
        """What a stage reads, as its objective wants it. Raises InputError, with the stage's own key."""
        found = self._data.get((data, reads))
        if found is None:
            look_up = self._look_up if data.mixture is None else self._mixture
            found = self._data[data, reads] = look_up(data, reads)
        return found

    def corpus(self, source: str, path: tuple[str, ...], options: SourceOptions = DEFAULTS) -> Corpus:
        """The documents of a source. Raises InputError."""
        if (source, path, options) not in self._corpora:
            self._corpora[source, path, options] = read_corpus(source, path, options)
        return self._corpora[source, path, options]

    def split(self, data: DataPlan) -> tuple[Side, Side]:
        """(training, held-out) documents."""
        return self.corpus(data.source, data.path, data.options).split(data.validation_fraction)

    def overlap(self, held_out: DataPlan, trained: DataPlan) -> int:
        """How many documents that one text holds out are trained on with the other."""
        pair = held_out.content, trained.content
        if pair not in self._overlaps:
            self._overlaps[pair] = self.split(held_out)[1].count_shared(self.split(trained)[0])
        return self._overlaps[pair]

    def tokenizer(self, name: str) -> TokenizerFacts:
        """What is known about a tokenizer without loading it."""
        if name not in self._tokenizers:
            self._tokenizers[name] = _known(self.pinned(name))
        return self._tokenizers[name]

    def pinned(self, tokenizer: str) -> str:
        """A Hub name with its current commit; any other tokenizer unchanged. Raises InputError."""
        if tokenizer not in self._pinned:
            is_hub_s = tokenizer != BYTE_TOKENIZER and hub.is_name(tokenizer)
            self._pinned[tokenizer] = hub.pinned(tokenizer, "data.tokenizer") if is_hub_s else tokenizer
        return self._pinned[tokenizer]

    def code(self, file: str) -> str:
        """The SHA-256 of a file of the user's code. Raises OSError."""
        if file not in self._code:
            self._code[file] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        return self._code[file]

    def init(self, init: Init) -> InitPlan:
        """What a run starts from. Raises InputError."""
        if init not in self._inits:
            self._inits[init] = find_init(init)
        return self._inits[init]

    def _mixture(self, data: Data, reads: Reads) -> MixturePlan:
        weights = _weights(data.mixture)
        parts: list[MixturePart] = []
        for index, (entry, weight) in enumerate(zip(data.mixture, weights, strict=True)):
            try:
                text = self.data(_text_of(data, entry), reads)
                if parts and text.samples is not None:
                    check_agreement(parts[0].data.samples, text.samples, parts[0].name)
            except InputError as error:
                raise InputError(error.problem, key=_entry_key(index, error.key), file=error.file) from None
            same = next((part.name for part in parts if part.data.content == text.content), None)
            if same is not None:
                problem = f"found the same text as in {same!r}; expected each text once, with the sum of its weights"
                raise InputError(problem, key=f"data.mixture[{index}]")
            if parts and text.tokenizer != parts[0].data.tokenizer:
                problem = f"found tokens beside text that is encoded as {data.tokenizer!r}"
                expected = "expected data.tokenizer to be the one that made the tokens"
                raise InputError(f"{problem}; {expected}", key=f"data.mixture[{index}]")
            parts.append(MixturePart(entry.name, text, weight, entry.max_repeats))
        return MixturePlan(tuple(parts))

    def _look_up(self, data: Data, reads: Reads) -> DataPlan:
        _check_source(data)
        are_chats = reads == "chats"
        check_documents(data.source, are_chats, data.chat_template, data.end_token)
        template = self._template(data) if are_chats else None
        path, options = _pinned(data, _options(data, reads))
        corpus = self.corpus(data.source, path, options)
        _check_split(corpus, data)
        training, held_out = corpus.split(data.validation_fraction)
        samples = corpus.samples(data.validation_fraction)
        if reads == "labels":
            check_classes(samples)
        has_text = samples is None or samples.image is None
        tokenizer, known = self._tokenizer_of(data, corpus, are_chats) if has_text else (NO_TOKENIZER, NOTHING_KNOWN)
        if tokenizer not in (BYTE_TOKENIZER, NO_TOKENIZER) and data.encoding_errors == "strict":
            corpus.check_utf8()
        return DataPlan(
            source=data.source,
            path=path,
            tokenizer=tokenizer,
            validation_fraction=data.validation_fraction,
            fingerprint=corpus.fingerprint,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
            options=options,
            tokenizer_size=known.size,
            end_token=data.end_token if corpus.largest is None and has_text else None,
            encoding_errors=data.encoding_errors,
            has_controls=corpus.holds_any(_marks(known, options)),
            train=training.size,
            held_out=held_out.size,
            largest_token=corpus.largest,
            chat_template=template,
            samples=samples,
            text=TrainingText.of(
                corpus.fingerprint, None if options.validation_path else data.validation_fraction, training
            ),
        )

    def _template(self, data: Data) -> str | None:
        known = NOTHING_KNOWN if data.tokenizer == BYTE_TOKENIZER else self.tokenizer(data.tokenizer)
        return find_template(data.chat_template, data.tokenizer, known)

    def _tokenizer_of(self, data: Data, corpus: Corpus, are_chats: bool) -> tuple[str, TokenizerFacts]:
        """The tokenizer's name, with its commit, and what is known about it. Of tokens it need not be known."""
        if corpus.largest is None:
            known = BYTES if data.tokenizer == BYTE_TOKENIZER else self.tokenizer(data.tokenizer)
            if not are_chats:
                _check_end(data, known)
            return self.pinned(data.tokenizer), known
        if data.tokenizer == BYTE_TOKENIZER:
            return NO_TOKENIZER, NOTHING_KNOWN
        known = self.tokenizer(data.tokenizer)
        _check_largest(data.tokenizer, known, corpus.largest)
        return self.pinned(data.tokenizer), known


# How a text becomes more documents, by source.
_WAYS = {
    "text": "data.document_separator or data.document_bytes to cut it at, or data.validation_path",
    "tokens": "data.end_token, the id of the token that ends a document, or data.validation_path",
}
_MOST_IDS = 2**32
# Keys under `data` that are options of the source as they are.
_AS_WRITTEN = ("files", "validation_split", "subset", "split", "format", "document_separator", "document_bytes",
               "classes", "only_classes", "resize", "channels")  # fmt: skip

# --- mixtures -----------------------------------------------------------------------------------

# Decimals such as 0.333333333, three times, count as 1.
_SUM_TOLERANCE = Fraction(1, 10**9)


def _text_of(data: Data, entry: MixtureEntry) -> Data:
    """An entry as a stage has it that reads nothing else."""
    own = {name: getattr(entry, name) for name in TextSource.model_fields}
    shared = {name: getattr(data, name) for name in Data.model_fields if name not in own}
    return Data.model_construct(**own, **shared | {"mixture": None})


def _entry_key(index: int, key: str) -> str:
    """The key of an entry in place of that of a whole section: 'data.mixture[1].path' for 'data.path'."""
    name = key.removeprefix("data.")
    return f"data.mixture[{index}].{name}" if name in TextSource.model_fields else key


def _weights(entries: Sequence[MixtureEntry]) -> list[Fraction]:
    """The exact weights: what the decimals say. Raises InputError where they do not add up to 1."""
    for index, entry in enumerate(entries):
        if entry.weight is None:
            problem = f"missing for the source {entry.name!r}; expected a share from 0 to 1, or rest"
            raise InputError(problem, key=f"data.mixture[{index}].weight")
    rest = [entry.name for entry in entries if entry.weight == REST]
    given = [Fraction(0) if entry.weight == REST else Fraction(repr(entry.weight)) for entry in entries]
    total = sum(given)
    if len(rest) > 1:
        found = f"found weight: rest for {' and '.join(rest)}"
        raise InputError(f"{found}; expected it for one source at most", key="data.mixture")
    if rest and total > 1:
        problem = f"found weights that add up to {_decimal(total)} without that of {rest[0]!r}, which gets the rest"
        raise InputError(f"{problem}; expected at most 1", key="data.mixture")
    if not rest and abs(total - 1) > _SUM_TOLERANCE:
        named = ", ".join(f"{entry.name} {entry.weight:g}" for entry in entries)
        problem = f"found weights that add up to {_decimal(total)} ({named})"
        raise InputError(f"{problem}; expected 1, or weight: rest for one of them", key="data.mixture")
    return [1 - total if entry.weight == REST else weight for entry, weight in zip(entries, given, strict=True)]


def _decimal(number: Fraction) -> str:
    return f"{float(number):.10g}"


# --- single texts -------------------------------------------------------------------------------

BYTES = TokenizerFacts(size=BYTE_VOCABULARY, has_end=True)


def _marks(known: TokenizerFacts, options: SourceOptions) -> list[bytes]:
    """Text that looks like a control token. The separator of the documents is not among it."""
    return [token.encode("utf-8", "surrogatepass") for token in known.controls if token != options.document_separator]


def _known(name: str) -> TokenizerFacts:
    """What the files of a tokenizer say: in a folder, or for a Hub name in the cache of this machine.

    Whether a text contains control tokens is part of a stage's key, so it must not depend on a cache.
    """
    if os.path.isdir(name):
        return read_tokenizer(Path(name))
    folder = _cached(name)
    return replace(read_tokenizer(folder), controls=()) if folder else NOTHING_KNOWN


def _cached(name: str) -> Path | None:
    repository, revision = hub.parts(name)
    with suppress(ValueError):  # no name of the hub's
        for file in ("tokenizer.json", "vocab.json", "vocab.txt"):
            found = huggingface_hub.try_to_load_from_cache(repository, file, revision=revision)
            if isinstance(found, str):
                return Path(found).parent
    return None


def _check_largest(tokenizer: str, known: TokenizerFacts, largest: LargestToken) -> None:
    if known.size is not None and largest.token >= known.size:
        where = f"{largest.file} has the token {largest.token} at position {largest.position:,}"
        problem = f"{where}, but the ids of the tokenizer {tokenizer!r} go up to {known.size - 1}"
        raise InputError(f"{problem}; expected tokens of this tokenizer", key="data.path")


def _pinned(data: Data, options: SourceOptions) -> tuple[tuple[str, ...], SourceOptions]:
    """The paths, and the options with theirs, so that they mean the same on every machine."""
    pin = SOURCES[data.source].pinned
    path, held_out = (tuple(pin(one, options) for one in paths) for paths in (data.path, options.validation_path))
    return path, replace(options, validation_path=held_out)


def _end_id(data: Data) -> int | None:
    if "tokens" not in SOURCES[data.source].gives or data.end_token is None:
        return None
    if not data.end_token.isdecimal() or int(data.end_token) >= _MOST_IDS:
        problem = f"found {shown(data.end_token)}; expected the id of the token that ends a document, such as 50256"
        raise InputError(problem, key="data.end_token")
    return int(data.end_token)


def _options(data: Data, reads: Reads) -> SourceOptions:
    are_chats, asked = reads == "chats", columns_asked(data.source, reads, data.label, data.image, data.only_classes)
    check_pixels(data.source, asked, {"data.resize": data.resize, "data.channels": data.channels})
    return SourceOptions(
        **{name: getattr(data, name) for name in _AS_WRITTEN},
        validation_path=data.path if data.validation_split else data.validation_path,
        end_id=_end_id(data),
        may_be_any=data.encoding_errors == "replace",
        field=data.field or ("messages" if are_chats else None),
        are_chats=are_chats,
        label=asked.label,
        image=asked.image,
    )


def _check_source(data: Data) -> None:
    """Refuse keys of other sources, and a source that reads files without any."""
    source = SOURCES[data.source]
    if source.has_path and not data.path:
        what = f"missing; expected a file or folder, or a list of them, for source: {data.source}"
        raise InputError(what, key="data.path")
    if not source.has_path and data.path:
        problem = f"found a path, but source {data.source} reads none; expected source: text, or path: []"
        raise InputError(problem, key="data.path")
    for key in sorted({key for entry in SOURCES.values() for key in entry.keys} - source.keys - {"path"}):
        if getattr(data, key):
            found = f"found {shown(getattr(data, key))} for source {data.source}"
            expected = f"source: {' or '.join(sources_with(key))}, or {key}: null where a stage has another source"
            raise InputError(f"{found}; expected it with {expected}", key=f"data.{key}")


def _check_end(data: Data, known: TokenizerFacts) -> None:
    """Refuse a tokenizer without a token that ends a document, as far as its files say so."""
    if data.tokenizer == BYTE_TOKENIZER:
        return
    if data.end_token is None and known.has_end is False:
        raise InputError(no_end(data.tokenizer), key="data.tokenizer")
    if data.end_token is not None and known.tokens is not None and data.end_token not in known.tokens:
        problem = f"found {data.end_token!r}, which is no token of {data.tokenizer!r}; expected one that is"
        raise InputError(problem, key="data.end_token")


def _check_split(corpus: Corpus, data: Data) -> None:
    """Refuse a split with an empty side. Documents are held out by their hash: of few documents a side may get none."""
    fraction, separator = data.validation_fraction, data.document_separator
    training, held_out = corpus.split(fraction)
    if training and held_out:
        return
    if corpus.has_own_held_out:
        problem = "found every document that is in data.path, too; expected other text to hold out"
        raise InputError(problem, key="data.validation_path")
    count, working = len(corpus), corpus.working_fraction()
    if working is None:
        if separator is not None and count == 1:
            problem = f"found {shown(separator)}, which stands nowhere in the text; expected what parts its documents"
            raise InputError(problem, key="data.document_separator")
        found = "1 document" if count == 1 else f"{count} documents of one and the same text"
        ways = _WAYS.get(data.source, "data.validation_path")
        raise InputError(f"found {found}; expected two or more, some of them to hold out ({ways})", key="data.path")
    side = "holds out none" if training else "leaves none for training"
    problem = f"found {fraction:g}, which {side} of {count} documents"
    raise InputError(f"{problem}; expected more documents, or for example {working}", key="data.validation_fraction")
