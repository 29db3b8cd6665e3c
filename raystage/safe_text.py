"""Text from elsewhere, made safe to show: without secrets, and without characters that control the terminal.

A URI is printed, and kept in run files, logs and reports. So secrets are refused in it, and a message that quotes it,
such as an error of a library, is shown without them.

Names and messages come from files that others may have written. A control character in them can rewrite the screen, the
window's title or the clipboard; a character that changes the writing direction makes text look like other text; a tag
in Markdown becomes HTML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote

HIDDEN = "***"

# Schemes where a name before the @ is no secret: a container, an account, a login.
_NAMED = frozenset({"abfs", "abfss", "hdfs", "viewfs", "ssh", "sftp"})
# Schemes whose buckets have no port: a colon can only separate a key from its secret.
_BUCKETS = frozenset({"s3", "s3a", "s3n", "gs", "gcs"})
# Options that a URI may have: how to reach a service, never who asks.
_OPTIONS = frozenset({
    "region", "scheme", "endpoint_override", "tls_ca_file_path", "allow_bucket_creation", "allow_bucket_deletion",
    "allow_delayed_open", "check_directory_existence_before_creation", "force_virtual_addressing", "smart_defaults",
    "default_bucket_location", "retry_limit_seconds", "project_id", "enable_tls", "blob_storage_authority",
    "blob_storage_scheme", "dfs_storage_authority", "dfs_storage_scheme", "replication", "buffer_size",
    "default_block_size", "use_mmap",
})  # fmt: skip
_SECRET_NAME = re.compile(
    r"(?:.*[_.-])?(?:password|passwd|passphrase|pwd|secret|token|credentials?|signature|sas|sig"
    r"|(?:api|access|account|secret|private|session|shared|license)[_-]?key(?:[_-]?id)?|apikey)",
    re.IGNORECASE,
)
# Where a URI was taken for a path, one of its two slashes is left.
_KEEPS_SECRET = re.compile(
    r"(?:password|passwd|secret|apikey|(?:api|access|account|secret|private)[_-]?key)$", re.IGNORECASE
)
# Bounded, so that the time they take grows no faster than the text, whatever a foreign file has in it.
_URI = re.compile(r"""([A-Za-z][A-Za-z0-9+.-]{0,63})(:/{1,2})([^\s'"`<>]*)""")
_LOGIN = re.compile(r"""(?:(?<![\w/.])|(?<=[^\s/@:'"`*]{256}))[^\s/@:'"`*]{1,256}:[^\s@/'"`]{1,4096}@(?=[\w\[])""")
_SETTING = re.compile(r"""(?<![\w.-])([\w.-]+)=([^\s&'"`;,]+)""")
# C0 without tab and line feed, DEL, C1; marks of writing direction, line separators, lone surrogates.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


_MARKDOWN = re.compile(r"[\\`|]|\[(?=[^\]]*\]\s*[(\[])")


# --- secrets ----------------------------------------------------------------------------------


def secret_in(address: str) -> str | None:
    """The kind of secret in a URI or in the address of a service, in words that do not repeat it; None where there is
    none."""
    match = _URI.fullmatch(address.strip())
    if match is None:
        return "a password" if _LOGIN.match(address.strip()) else None
    scheme, rest = match[1].lower(), match[3]
    if _login(scheme, rest):
        return "a key" if scheme in _BUCKETS else "a password"
    for name, value in _queries(rest):
        if is_secret_name(name):
            return f"the option {name}"
        if _has_login(value):
            return f"a password in the option {name}"
    return None


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name is usually a secret: HF_TOKEN, AWS_SECRET_ACCESS_KEY."""
    return _SECRET_NAME.fullmatch(name) is not None


def without_secrets(text: str) -> str:
    """A text, such as an error of a library, without possible secrets in its addresses and settings."""
    if "@" not in text and "=" not in text and ":/" not in text:
        return text
    text = _URI.sub(_quoted, text)
    text = _LOGIN.sub(f"{HIDDEN}@", text)
    return _SETTING.sub(lambda match: f"{match[1]}={HIDDEN}" if is_secret_name(match[1]) else match[0], text)


def secrets_in(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The places of secrets in plain data, each with its kind."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str) and _KEEPS_SECRET.search(str(key)):
                yield (*path, key), f"a value for {key}"
            else:
                yield from secrets_in(inner, (*path, key))
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from secrets_in(inner, (*path, index))
    elif isinstance(value, str) and "://" in value:
        found = secret_in(value)
        if found is not None:
            yield path, found


def _login(scheme: str, rest: str) -> str:
    """The login before the @ of a URI; "" where there is none, or where it is no secret.

    A password may contain characters that end an authority.
    """
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    login, at, _ = authority.rpartition("@")
    if at:
        is_open = login == "anonymous" or (scheme in _NAMED and not re.search(":|%3a", login, re.IGNORECASE))
        return "" if is_open else login
    before, colon, port = authority.rpartition(":")
    is_port = port.isdigit() and scheme not in _BUCKETS
    return before if colon and not is_port and not authority.endswith("]") and "@" in rest else ""


def _quoted(match: re.Match[str]) -> str:
    """A URI within a sentence, without the punctuation that ends the clause."""
    rest = match[3].rstrip(";,")
    return match[1] + match[2] + _shown(match[1].lower(), rest) + match[3][len(rest) :]


def _shown(scheme: str, rest: str) -> str:
    if _login(scheme, rest):
        rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
    place, mark, query = rest.partition("?")
    if not mark:
        return place
    pairs = (pair.partition("=") for pair in re.split("[&;]", query))
    return f"{place}?" + "&".join(name + equals + _value(name, value) for name, equals, value in pairs)


def _value(name: str, value: str) -> str:
    return value if not value or (name in _OPTIONS and not _has_login(unquote(value))) else HIDDEN


def _queries(rest: str) -> list[tuple[str, str]]:
    return parse_qsl(rest.partition("?")[2].replace(";", "&"), keep_blank_values=True)


def _has_login(value: str) -> bool:
    return bool(re.search(r"[^/@]*@", value.partition("://")[2] or value))


# --- control characters ------------------------------------------------------------------------


def visible(text: str) -> str:
    r"""The text with control characters as escapes: \x1b]0;title\x07."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def in_markdown(text: str) -> str:
    """The text as one line of Markdown that shows it as it is: no HTML, no links, no code, no further table cell."""
    line = " ".join(visible(text).splitlines())
    escaped = _MARKDOWN.sub(lambda found: "\\" + found[0], line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;") if "<" in escaped or "&#" in escaped else escaped
