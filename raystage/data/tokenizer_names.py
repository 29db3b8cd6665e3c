"""What identifies a tokenizer: its name, or the content of its files, wherever they lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from raystage.data.tokenizer_files import check_bounds
from raystage.errors import InputError
from raystage.models import hub
from raystage.sources.text_files import unreadable

BYTE_TOKENIZER = "bytes"
NO_TOKENIZER = "none"  # where the text is given as tokens, and nobody says by which tokenizer
BYTE_VOCABULARY = 257  # 256 bytes and the end of a document

# The files that Hugging Face tokenizers of any kind read from a folder.
_TOKENIZER_FILES = (
    "added_tokens.json", "bpe.codes", "dict.txt", "merges.txt", "sentencepiece.bpe.model", "source.spm",
    "special_tokens_map.json", "spiece.model", "target.spm", "tekken.json", "tokenizer.json", "tokenizer.model",
    "tokenizer.model.v1", "tokenizer.model.v2", "tokenizer.model.v3", "tokenizer_config.json", "vocab.bpe",
    "vocab.json", "vocab.txt",
)  # fmt: skip


def tokenizer_fingerprint(tokenizer: str) -> str:
    """What identifies a tokenizer: "bytes", a hub name with its commit, or the hash of the files in its folder.

    Raises InputError where there is no such folder, or no tokenizer in it.
    """
    if tokenizer in (BYTE_TOKENIZER, NO_TOKENIZER):
        return tokenizer
    if os.path.isdir(tokenizer):
        return _folder_fingerprint(Path(tokenizer))
    if not hub.is_name(tokenizer):
        problem = f"found {tokenizer!r}, which is no folder here; expected 'bytes', a folder or a hub name"
        raise InputError(problem, key="data.tokenizer")
    return tokenizer


def _folder_fingerprint(folder: Path) -> str:
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]
    if not files:
        problem = f"found no tokenizer in the folder {str(folder)!r}; expected tokenizer.json or the like in it"
        raise InputError(problem, key="data.tokenizer")
    try:
        check_bounds(folder)
    except ValueError as error:
        raise InputError(str(error), key="data.tokenizer", file=str(folder)) from None
    lines = [f"{file.name} {_digest(file)}\n" for file in files]
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise unreadable(error, "data.tokenizer") from None
