"""How the text of a stage is read: what its windows keep apart."""

from __future__ import annotations

from typing import Literal

from raystage.config.section import Section


class Window(Section):
    """The windows that a text is read in: its documents packed one after the other, in pieces of the context length."""

    mask: Literal["none", "document"] = "none"
    """What attention and loss keep apart within a window: nothing, or each `document`. With `document`, positions start
    anew at every document, no token attends to another document, and none has to predict the next document's first
    token."""
