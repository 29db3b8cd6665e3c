"""Where commands print: what happens when that cannot be written to."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# More characters than the first sentence of a help text has.
_WHOLE = 500


class Listed(click.Group):
    """Its help tells of every command in a whole sentence; click's would end with dots."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.commands[name].get_short_help_str(limit=_WHOLE)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Commands(Listed):
    """Says in one line that standard output cannot be written to; where its reader has left, nothing."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        with _kept_from_failing("stderr"):
            try:
                return super().main(*arguments, **options)
            except OSError as error:
                # Of files, the message would have the name; click takes care of readers that have left.
                if error.filename is not None or error.errno not in _NO_ROOM:
                    raise
                _give_up_output(error)

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        sys.stdout.flush()  # or Python would find out when it ends
        return result


def _give_up_output(error: OSError) -> None:
    click.echo(f"raystage: standard output cannot be written to ({error.strerror})", err=True)
    with contextlib.suppress(OSError, ValueError):  # what is still to be written would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


class _Lenient:
    """A stream whose writes never fail: no run ends because nobody can be told how it goes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _kept_from_failing(name: str) -> Iterator[None]:
    before = getattr(sys, name)
    setattr(sys, name, _Lenient(before))
    try:
        yield
    finally:
        setattr(sys, name, before)
