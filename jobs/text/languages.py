"""Write sentences in 16 languages, with and without their language, for jobs/schedules/languages.yaml:

    pip install django babel
    python jobs/text/languages.py

The sentences are the translations of Django's own texts, in the .mo files that its package ships (BSD licence); nothing
of Django is imported. They go to jobs/text/languages, or to the folder that is named:

    sentences.jsonl   {"text": "Dieses Feld ist zwingend erforderlich."}, of three in four texts, in all languages
    labelled.jsonl    {"text": "Tällä kentällä voi olla vain yksi arvo.", "label": "fi"}, of the other texts
    words             a tokenizer of 1,000 parts of words, made of sentences.jsonl
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from babel.messages.mofile import read_mo
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LANGUAGES = ("af", "ca", "cs", "da", "de", "es", "fi", "fr", "gl", "it", "nb", "nl", "pl", "pt", "sk", "sv")
FOLDER = Path(__file__).parent / "languages"
LABELLED_SHARE = 0.25
VOCABULARY = 1_000
END, MASK = "</s>", "<mask>"
SHORTEST = 12  # characters: "Januar" is German, and Danish, and ...
# What programs fill in, and marks of HTML: the same in every language.
NO_LANGUAGE = re.compile(r"%(\(\w+\))?[-#0-9.]*[a-zA-Z%]|\{[^}]*\}|<[^>]*>|&\w+;|https?://\S+")


def package() -> Path:
    """The folder of Django, which is not imported."""
    found = importlib.util.find_spec("django")
    if found is None:
        raise SystemExit("found no Django; expected it: pip install django")
    return Path(found.submodule_search_locations[0])


def translations(language: str) -> Iterator[tuple[str, str]]:
    """(the English text, its translation) of every message of Django's; of a plural its last form."""
    for path in sorted(package().glob(f"**/locale/{language}/LC_MESSAGES/*.mo")):
        with path.open("rb") as file:
            for message in read_mo(file):
                one, other = (value if isinstance(value, str) else value[-1] for value in (message.id, message.string))
                if one and other and one != other:
                    yield one, other


def sentence(text: str) -> str:
    """A text in one line, without what is of no language."""
    return " ".join(NO_LANGUAGE.sub(" ", text).split())


def is_labelled(text: str) -> bool:
    """By the English text, so that no text is in both files, not even in two languages."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 2**32 < LABELLED_SHARE


def rows() -> dict[str, tuple[str, bool]]:
    """By sentence its language, and whether it is labelled. What two languages say alike is left out."""
    found: dict[str, tuple[str, bool]] = {}
    shared: set[str] = set()
    for language in LANGUAGES:
        for english, other in translations(language):
            text = sentence(other)
            if len(text) >= SHORTEST and found.setdefault(text, (language, is_labelled(english)))[0] != language:
                shared.add(text)
    return {text: row for text, row in found.items() if text not in shared}


def tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair encoding: what is frequent in some language is one token."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END, MASK], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END, mask_token=MASK)


def write(folder: Path = FOLDER) -> tuple[int, int]:
    """The numbers of rows without and with labels."""
    plain, labelled = [], []
    for text, (language, has_label) in sorted(rows().items()):
        (labelled if has_label else plain).append({"text": text} | ({"label": language} if has_label else {}))
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in (("sentences", plain), ("labelled", labelled)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer([row["text"] for row in plain]).save_pretrained(folder / "words")
    return len(plain), len(labelled)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    counts = write(target)
    print(f"{counts[0]:,} sentences and {counts[1]:,} with their language in {target}")
