"""What the files of a tokenizer say about it, read without loading it, so that a plan can check it.

What they do not say for sure is None here, and becomes known when the tokenizer is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystage.units import shown

# The keys of tokens with a purpose.
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# More than any tokenizer has.
_MOST_IDS = 2**31
_LARGEST_BYTES = 2**29
# Tokens that some classes create by themselves, as many as a configuration says; T5 has 100.
_MOST_EXTRA_IDS = 100_000
_NUMBER = re.compile(r"[0-9]{1,10}")
# Classes without an end-of-text token by default; others may have one.
_WITHOUT_END = {"PreTrainedTokenizerFast", "BertTokenizer", "BertTokenizerFast", "TokenizersBackend"}
_NAMING_CLASSES = ("tokenizer_config.json", "special_tokens_map.json", "config.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """size: one more than the largest id. has_end: whether it has an end-of-text token. controls: control tokens.

    tokens: all ids by token. mask: its mask token. chat_template: what makes a text of a conversation.
    """

    size: int | None = None
    has_end: bool | None = None
    controls: tuple[str, ...] = ()
    tokens: Mapping[str, int] | None = None
    mask: str | None = None
    chat_template: str | None = None


NOTHING_KNOWN = TokenizerFacts()


def read_tokenizer(folder: Path) -> TokenizerFacts:
    """What the files in a folder say. Damaged files say nothing."""
    config, named = _json(folder / "tokenizer_config.json"), _json(folder / "special_tokens_map.json")
    ids, controls = _vocabulary(folder), set(_controls(folder, config))
    roles = {role: _content(config.get(role) or named.get(role)) for role in _ROLES}
    further = [*_list(config, "additional_special_tokens"), *_list(config, "extra_special_tokens")]
    special = {token for token in (*roles.values(), *map(_content, further)) if token}
    # A special token without an id in any file gets one when the tokenizer is loaded.
    is_known = ids and special <= ids.keys()
    return TokenizerFacts(
        size=1 + max(ids.values()) if is_known else None,
        has_end=True if roles["eos_token"] else _without_end(folder, config, bool(ids)),
        controls=tuple(sorted(controls | special)),
        tokens=ids if is_known else None,
        mask=roles["mask_token"],
        chat_template=_chat_template(folder, config),
    )


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The one that transformers takes: that of the file counts before that of the configuration, where it may be one of
    several."""
    file = folder / "chat_template.jinja"
    try:
        if file.is_file() and file.stat().st_size <= _LARGEST_BYTES:
            return file.read_text("utf-8")
    except (OSError, ValueError):
        return None
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def check_bounds(folder: Path) -> None:
    """Raises ValueError where the files of a tokenizer have more than can be loaded."""
    for file in sorted(folder.iterdir()):
        is_text = file.suffix in (".json", ".txt", ".model", ".jinja") and file.is_file()
        if is_text and file.stat().st_size > _LARGEST_BYTES:
            raise ValueError(f"found {file.stat().st_size} bytes in {file.name}; expected at most {_LARGEST_BYTES}")
    extra = _json(folder / "tokenizer_config.json").get("extra_ids")
    if isinstance(extra, int | float) and not extra <= _MOST_EXTRA_IDS:
        raise ValueError(f"found {shown(extra)} extra_ids; expected at most {_MOST_EXTRA_IDS}")


def no_end(name: str) -> str:
    """The message about a tokenizer without an end-of-text token."""
    problem = f"found {name!r}, which has no end-of-text token, so that one document would run into the next"
    return (
        f"{problem}; expected data.end_token, such as '</s>' or '[SEP]', or an eos_token in its tokenizer_config.json"
    )


def _without_end(folder: Path, config: dict[str, Any], has_ids: bool) -> bool | None:
    """False for a class that has no end-of-text token by default; also that of a tokenizer.json (whole, with ids)
    without any other file that could name one."""
    is_alone = has_ids and (folder / "tokenizer.json").is_file()
    is_alone = is_alone and not any((folder / name).exists() for name in _NAMING_CLASSES)
    return False if is_alone or str(config.get("tokenizer_class")) in _WITHOUT_END else None


def _vocabulary(folder: Path) -> dict[str, int]:
    """All ids by token, with added tokens; empty where no file lists them."""
    whole = _json(folder / "tokenizer.json")
    model = whole.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, list):  # a unigram model: pairs of token and score
        vocabulary = {pair[0]: place for place, pair in enumerate(vocabulary) if isinstance(pair, list) and pair}
    if not (folder / "tokenizer.json").is_file():
        vocabulary = _json(folder / "vocab.json") or _lines(folder / "vocab.txt")
    if not isinstance(vocabulary, dict) or not vocabulary:
        return {}
    config = _json(folder / "tokenizer_config.json")
    found = {**vocabulary, **_json(folder / "added_tokens.json")}
    found |= {_content(one): one.get("id") for one in _list(whole, "added_tokens") if isinstance(one, dict)}
    found |= {_content(token): int(place) for place, token in _decoder(config) if _NUMBER.fullmatch(place)}
    known = {token: place for token, place in found.items() if isinstance(token, str) and _is_id(place)}
    return known if len(known) == len(found) else {}


def _is_id(place: object) -> bool:
    return isinstance(place, int) and 0 <= place < _MOST_IDS


def _controls(folder: Path, config: dict[str, Any]) -> Iterable[str]:
    """The added tokens that are special."""
    added = _list(_json(folder / "tokenizer.json"), "added_tokens")
    for token in (*added, *(token for _, token in _decoder(config))):
        if isinstance(token, dict) and token.get("special") and _content(token):
            yield _content(token)


def _decoder(config: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    decoder = config.get("added_tokens_decoder")
    return decoder.items() if isinstance(decoder, dict) else ()


def _content(token: object) -> str | None:
    """The text of a token: written plainly, or as one of the token's properties."""
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else None


def _list(content: dict[str, Any], key: str) -> list[Any]:
    found = content.get(key)
    return found if isinstance(found, list) else []


def _lines(path: Path) -> dict[str, int]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            return {}
        return {line: place for place, line in enumerate(path.read_text("utf-8").split("\n")) if line}
    except (OSError, ValueError):
        return {}


def _json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST_BYTES:
            return {}
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
