"""The documents of the repository: their blocks, commands, links and headings, as a reader finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
GENERATED = ("docs/schedule.md", "docs/cli.md")
# What a reader is sent to; CHANGELOG.md is about the past, and names what is gone.
PATHS = (
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "cluster/README.md")),
    *sorted(DOCS.glob("*.md")),
)
PAGES = {path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8") for path in PATHS}


@dataclass(frozen=True)
class Block:
    """A block of code. kind: what stands behind its fence, "" where it is indented."""

    page: str
    kind: str
    text: str

    @property
    def lines(self) -> list[str]:
        """Continued lines are joined."""
        return self.text.replace("\\\n", " ").splitlines()


def blocks(page: str) -> Iterator[Block]:
    fenced = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
    text = PAGES[page]
    for kind, inside in fenced.findall(text):
        yield Block(page, kind, inside)
    for inside in re.findall(r"(?:^    .*\n|^\n(?=    ))+", fenced.sub("", text), re.M):
        yield Block(page, "", inside.replace("\n    ", "\n").strip())


BLOCKS = [block for page in PAGES for block in blocks(page)]


def block_with(text: str, page: str) -> Block:
    return next(block for block in BLOCKS if block.page == page and text in block.text)


def shell_lines(start: str, page: str | None = None) -> list[tuple[str, str]]:
    """(page, line without its comment) for every line of a command block that begins with `start`; of all pages,
    or of one."""
    found = [
        (block.page, re.split(r"\s#", line)[0].strip())
        for block in BLOCKS
        if block.kind in ("", "sh") and page in (None, block.page)
        for line in block.lines
        if line.startswith(start)
    ]
    return list(dict.fromkeys(found))


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.M | re.S)


def links(page: str) -> list[str]:
    """Where its links lead, other sites left out."""
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose(page))


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)


def github_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_anchor(heading: str) -> str:
    """As the site's builder makes them (Python-Markdown's `toc`)."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "")).strip().lower())
