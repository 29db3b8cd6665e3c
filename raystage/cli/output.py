"""The streams of a command: output that cannot be written, what libraries print, and help texts."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

import click

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


# More characters than the first sentence of any help text.
_WHOLE = 500


class Listed(click.Group):
    """Its help shows the whole first sentence of every command; click would cut it."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, self.commands[name].get_short_help_str(limit=_WHOLE)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Commands(Listed):
    """Reports in one line that standard output cannot be written; nothing if its reader has left."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        with _kept_from_failing("stderr"):
            try:
                return super().main(*arguments, **options)
            except OSError as error:
                # An error of a file would name it. click handles readers that have left.
                if error.filename is not None or error.errno not in _NO_ROOM:
                    raise
                _give_up_output(error)

    def invoke(self, ctx: click.Context) -> Any:
        result = super().invoke(ctx)
        sys.stdout.flush()  # otherwise the error would come when Python exits
        return result


def _give_up_output(error: OSError) -> None:
    click.echo(f"raystage: standard output cannot be written to ({error.strerror})", err=True)
    with contextlib.suppress(OSError, ValueError):  # the rest of the output would fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)


class _Lenient:
    """A stream whose writes never fail. No run should end because its progress cannot be printed."""

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


class DebugStream(io.TextIOBase):
    """Takes what libraries print, and logs it at debug level."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("raystage.noise").debug("%s", text.rstrip())
        return len(text)
