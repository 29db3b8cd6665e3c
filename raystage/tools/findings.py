"""The result of one check of a machine or a cluster."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["ok", "warning", "FAILED"]


@dataclass(frozen=True)
class Finding:
    """found: in words. advice: what to do about it; empty if all is well."""

    check: str
    state: State
    found: str
    advice: str = ""

    @property
    def is_failure(self) -> bool:
        return self.state == "FAILED"

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.advice}" if self.advice else "")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "warning", found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    return Finding(check, "FAILED", found, advice)
