"""The tokenizer that goes along with an exported model: a Hugging Face one as it is, or raystage's bytes as one."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from raystage.corpus import BYTE_TOKENIZER, tokenizer_fingerprint
from raystage.errors import InputError
from raystage.resolve_shape import BYTE_VOCABULARY

END_OF_DOCUMENT = "<|endoftext|>"
# All that belongs to a tokenizer in a folder that may hold a model as well.
_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
          "chat_template*")  # fmt: skip


def byte_tokenizer(context_length: int) -> transformers.PreTrainedTokenizerFast:
    """A token for every byte, whose id is the byte; 256 ends a document, as in `data.ByteTokenizer`.

    What reads like the end of a document within a text is bytes like any other (`split_special_tokens`). Like GPT-2's
    tokenizer it adds no token by itself.
    """
    vocabulary = {character: byte for byte, character in enumerate(_characters())}
    bytewise = Tokenizer(models.BPE(vocabulary | {END_OF_DOCUMENT: BYTE_VOCABULARY - 1}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytewise.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        eos_token=END_OF_DOCUMENT,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def _characters() -> list[str]:
    """By byte the character that stands for it in byte-level vocabularies: itself where it can be seen, else one of
    those from U+0100 on. Source: GPT-2's encoder.py."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


def load_tokenizer(name: str, fingerprint: str | None, context_length: int) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer that a stage used. Raises InputError where it cannot be found, or is another one by now."""
    if name == BYTE_TOKENIZER:
        return byte_tokenizer(context_length)
    expected = "expected the one that the checkpoint was trained with (--tokenizer FOLDER, or none)"
    try:
        found = tokenizer_fingerprint(name)
        loaded = transformers.AutoTokenizer.from_pretrained(name)
    except (InputError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name!r} cannot be loaded ({reason}); {expected}", key="tokenizer") from None
    if os.path.isdir(name) and (fingerprint or "").startswith("sha256:") and found != fingerprint:
        raise InputError(f"found other files in {name!r}; {expected}", key="tokenizer")
    return loaded


def tokenizer_files(name: str, tokenizer: transformers.PreTrainedTokenizerBase) -> Mapping[str, bytes]:
    """By name the files that AutoTokenizer reads: a folder's own, else what the tokenizer saves."""
    if os.path.isdir(name):
        return _matching(Path(name))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _matching(Path(folder))


def _matching(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if any(fnmatch.fnmatch(path.name, one) for one in _FILES)}
