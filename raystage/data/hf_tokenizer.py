"""The tokenizer that is exported with a model: a Hugging Face one as it is, or raystage's byte tokenizer as one."""

from __future__ import annotations

import fnmatch
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers.utils.chat_template_utils import render_jinja_template

from raystage.data.tokenizer_files import check_bounds
from raystage.data.tokenizer_names import BYTE_TOKENIZER, BYTE_VOCABULARY, tokenizer_fingerprint
from raystage.errors import InputError
from raystage.models import hub
from raystage.units import first_line

END_OF_DOCUMENT = "<|endoftext|>"
_FOLDER = "sha256:"  # what the fingerprints of folders begin with
# The files of a tokenizer in a folder that may also contain a model.
_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model",
          "chat_template*")  # fmt: skip


def byte_tokenizer(context_length: int) -> transformers.PreTrainedTokenizerFast:
    """A token for every byte, whose id is the byte; 256 ends a document, as in `data.tokenizers.ByteTokenizer`.

    Text that looks like the end of a document is encoded as bytes (`split_special_tokens`). Like GPT-2's tokenizer it
    adds no token by itself.
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
    """For each byte the character that stands for it in byte-level vocabularies: itself where it is printable, else one
    from U+0100 on. Source: GPT-2's encoder.py."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    unseen = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + unseen.index(byte)) for byte in range(256)]


def load_tokenizer(name: str, fingerprint: str | None, context_length: int, is_asked_for: bool) -> Any:
    """The tokenizer that a stage used. Raises InputError where it is missing, or has changed since.

    is_asked_for: the user named it. A tokenizer that only a checkpoint names is not downloaded, and is loaded only
    after its fingerprint was compared, because a checkpoint may come from anywhere.
    """
    if name == BYTE_TOKENIZER:
        return byte_tokenizer(context_length)
    expected = "expected the one that the checkpoint was trained with (--tokenizer FOLDER, or none)"
    try:
        found = tokenizer_fingerprint(name)
        if fingerprint is not None and not _fits(found, fingerprint, is_asked_for):
            raise InputError(f"found other files in {name!r}; {expected}", key="tokenizer")
        return pretrained(name, offline=not is_asked_for)
    except InputError as error:
        if error.key == "tokenizer":
            raise
        raise InputError(f"{name!r} cannot be loaded ({error.problem}); {expected}", key="tokenizer") from None


def _fits(found: str, fingerprint: str, is_asked_for: bool) -> bool:
    """A folder may stand for a Hub name, and a Hub name for a folder, only where the user says so."""
    both_folders = found.startswith(_FOLDER) and fingerprint.startswith(_FOLDER)
    return found == fingerprint or (is_asked_for and not both_folders)


def pretrained(name: str, offline: bool = False) -> transformers.PreTrainedTokenizerBase:
    """A Hugging Face tokenizer, by Hub name or folder. Code beside it never runs, and the user is never asked.

    offline: only from a folder or the cache of this machine. Raises InputError, which says why it cannot be loaded.
    """
    place = Path(name) if os.path.isdir(name) else hub.snapshot(name, hub.TOKENIZER_FILES, "data.tokenizer", offline)
    try:
        check_bounds(Path(place))
        found = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, local_files_only=True)
        if not isinstance(found, transformers.PreTrainedTokenizerBase):
            raise ValueError(f"found a {type(found).__name__}; expected a tokenizer of text")
        return found
    except Exception as error:  # whatever transformers makes of broken files
        reason = first_line(error)
        raise InputError(reason, key="data.tokenizer") from None


def for_training(name: str) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer of a stage. Raises InputError, which names it."""
    try:
        return pretrained(name)
    except InputError as error:
        problem = f"{name!r} cannot be loaded as a tokenizer ({error.problem})"
        raise InputError(problem, key="data.tokenizer") from None


def for_samples(
    tokenizer: transformers.PreTrainedTokenizerBase, end: int, context_length: int
) -> transformers.PreTrainedTokenizerFast | None:
    """The tokenizer that makes of a text what a classifier is trained on (`data.tokenizers.LabelledTexts`): with the
    token that begins a sample, where there is one, and with `end` behind it, also where a text is cut.

    None where it does so already, or where transformers has it in Python alone.
    """
    start = [] if tokenizer.cls_token_id is None else [tokenizer.cls_token_id]
    alone = tokenizer.encode("a", add_special_tokens=False)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.encode("a") == [*start, *alone, end]:
        return None
    names = {one: tokenizer.convert_ids_to_tokens(one) for one in (*start, end)}
    changed = Tokenizer.from_str(backend.to_str())
    changed.post_processor = processors.TemplateProcessing(
        single=[*(names[one] for one in start), "$A", names[end]],
        special_tokens=[(name, one) for one, name in names.items()],
    )
    # Of the plain class: others replace what is added to a text when they are loaded.
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=changed,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **tokenizer.special_tokens_map,
    )


def num_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """One more than the largest id. Ids may have gaps, so the number of tokens is not enough."""
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def rendered(
    tokenizer: transformers.PreTrainedTokenizerBase, template: str, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a chat template makes of a conversation, and where its `generation` blocks begin and end in it.

    The template runs in the sandbox of transformers. Raises what a template raises.
    """
    texts, spans = render_jinja_template(
        conversations=[list(messages)],
        chat_template=template,
        return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map,
    )
    return texts[0], spans[0]


def own_template(tokenizer: transformers.PreTrainedTokenizerBase) -> str | None:
    """The chat template of a tokenizer; None where it has none."""
    found = tokenizer.chat_template
    return found.get("default") if isinstance(found, Mapping) else found


def control_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """Its special tokens, as text."""
    added = tokenizer.added_tokens_decoder.values()
    return sorted({*tokenizer.all_special_tokens, *(str(one) for one in added if one.special)} - {""})


def tokenizer_files(name: str, tokenizer: transformers.PreTrainedTokenizerBase) -> Mapping[str, bytes]:
    """By name the files that AutoTokenizer reads: those of the folder, else those that the tokenizer saves."""
    return _matching(Path(name)) if os.path.isdir(name) else saved_files(tokenizer)


def saved_files(tokenizer: transformers.PreTrainedTokenizerBase) -> Mapping[str, bytes]:
    """By name the files that a tokenizer saves."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _matching(Path(folder))


def _matching(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return {path.name: path.read_bytes() for path in files if any(fnmatch.fnmatch(path.name, one) for one in _FILES)}
