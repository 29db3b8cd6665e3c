"""Text from elsewhere, made harmless where it is shown: on a terminal, in Markdown.

Names and messages come from files that others may have written. A control character in them can rewrite the screen,
the window's title or the clipboard; a sign that turns the writing direction makes text say what it does not; a tag in
Markdown becomes HTML.
"""

from __future__ import annotations

import re

# C0 without tab and line feed, DEL, C1; signs of writing direction and line separators; halves of characters.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"[\\`|]|\[(?=[^\]]*\]\s*[(\[])")


def visible(text: str) -> str:
    r"""The same with what steers a terminal as escapes: \x1b]0;title\x07."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), text)


def in_markdown(text: str) -> str:
    """The same as one line of Markdown that shows it: no HTML, no links, no code, no further cell of a table."""
    line = " ".join(visible(text).splitlines())
    escaped = _MARKDOWN.sub(lambda found: "\\" + found[0], line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;") if "<" in escaped or "&#" in escaped else escaped
