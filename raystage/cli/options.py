"""What all commands share: exit statuses and messages, common options, reading a schedule, and printing."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, TextIO

import click

from raystage.errors import InputError, RaystageError
from raystage.safe_text import secret_in, visible
from raystage.units import shown

INTERRUPTED = 130
WANDB_MODES = ("offline", "online", "disabled")
# Older names, which W&B still takes.
_WANDB_NAMES = {"dryrun": "offline", "run": "online"}
# As Ray calls it.
OWN_CLUSTER = "local"
# Where `ray job submit --working-dir` unpacks a working directory: a copy that is thrown away.
_JOB_COPY = "runtime_resources/working_dir_files"


def exits(command: Callable[..., None]) -> Callable[..., None]:
    """One message and the right exit status for what goes wrong on purpose; no traceback."""

    @wraps(command)
    def guarded(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except RaystageError as error:
            say(f"raystage: {error}", err=True)
            _say_what_next(error)
            _leave(error.exit_status)
        except KeyboardInterrupt as interrupt:
            why = str(interrupt) or "interrupted"
            say(f"raystage: {why}; the same command goes on from the last checkpoint", err=True)
            _say_what_next(interrupt)
            _leave(INTERRUPTED)
        if _has_train_run():
            _leave(0)

    return guarded


def _say_what_next(error: BaseException) -> None:
    for line in getattr(error, "__notes__", ()):
        say(f"raystage: {line}", err=True)


def _leave(status: int) -> None:
    """Exit; at once where a Train run is still waited for in a thread, since Ray's own tidying up would then
    end the process with a status of Ray's. Ray sees the process go and ends what belongs to it."""
    if _has_train_run():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _has_train_run() -> bool:
    train_run = sys.modules.get("raystage.cluster.train_run")
    return train_run is not None and train_run.has_train_run()


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
store_option = click.option(
    "--store", metavar="URI", help="Where stages are kept: a path, s3://..., gs://... [.raystage]"
)
address_option = click.option(
    "--address",
    help="A running Ray cluster: HOST:PORT, or auto for what `ray start` started here (RAY_ADDRESS counts too). "
    "Otherwise, and with local, the run starts a cluster of its own, on this machine.",
)
wandb_option = click.option(
    "--wandb",
    "wandb_mode",
    type=click.Choice(WANDB_MODES),
    help="Where W&B has the run: offline in ./wandb, which `wandb sync` uploads later; online, with a key of "
    "`wandb login`; or not at all. What is given here wins over WANDB_MODE and WANDB_DISABLED.  [default: offline]",
)


def say(text: str = "", err: bool = False, nl: bool = True) -> None:
    """Print lines for people: what steers a terminal is shown, not done."""
    click.echo(visible(text), err=err, nl=nl)


def open_store(uri: str | None) -> Any:
    from raystage.files.filesystem import open_folder
    from raystage.storage.store import Store

    return Store(open_folder(store_uri(uri)))


def init_source(source: str, store: str | None) -> str:
    """What `init.from` names: of a stage's name, mine/full, its folder in the store, which has its key in it. So what
    is planned and written down does not change when the name comes to stand for another stage. Raises InputError."""
    if "://" in source or "/" not in source or os.path.isdir(source):
        return source
    from raystage.storage.naming import stage_key

    opened = open_store(store)
    key = stage_key(opened, source, "init.from")
    if key is None:
        return source
    if not opened.folder.is_local:
        problem = f"found stage {source!r} of {opened.folder.uri}; expected a store on disks that every worker sees"
        raise InputError(problem, key="init.from")
    return opened.stage_folder(key).path


def finished_in(store: str | None, keys: Collection[str]) -> set[str] | None:
    """Those of the stages that a store has finished; None where none is named, so that none is looked at."""
    if store is None:
        return None
    from raystage.storage.maintenance import finished_among

    return finished_among(open_store(store), keys)


def store_uri(uri: str | None) -> str:
    """Where the store is, given what `--store` says."""
    if uri is None and in_job_copy():
        uri = str(Path.home() / ".raystage")
        say(f"raystage: this working directory goes with the Ray job; the store is {uri} (--store)", err=True)
    return uri or ".raystage"


def cluster_address(address: str | None) -> str | None:
    """The Ray cluster to join, which `--address` or the environment names; None for one of the run's own.

    Raises InputError."""
    found = address or os.environ.get("RAY_ADDRESS")
    if found and (secret := secret_in(found)):
        problem = f"found {secret}; expected an address without, for it is kept in run files"
        raise InputError(problem, key="--address" if address else "RAY_ADDRESS")
    return None if found == OWN_CLUSTER else found or None


def wandb_mode_for(given: str | None, environment: Mapping[str, str] = os.environ) -> str:
    """What `--wandb` says, else what W&B's own variables say, else offline. Raises InputError."""
    if given is not None:
        return given
    if environment.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        return "disabled"
    said = environment.get("WANDB_MODE", "").strip().lower()
    mode = _WANDB_NAMES.get(said, said) or "offline"
    if mode not in WANDB_MODES:
        raise InputError(f"found {shown(said)}; expected {', '.join(WANDB_MODES)}", key="WANDB_MODE")
    return mode


def in_job_copy() -> bool:
    return _JOB_COPY in str(Path.cwd())


def print_result(report: dict[str, Any], table: Any, as_json: bool) -> None:
    """JSON alone on standard output where that is asked for; the table that people read goes beside it."""
    from raystage.report.terminal import SafeConsole

    if as_json:
        print_json(report)
    SafeConsole(stderr=as_json).print(table)


class DebugStream(io.TextIOBase):
    """Takes what libraries print and keeps it for whoever turns debug logging on."""

    def write(self, text: str) -> int:
        if text.strip():
            logging.getLogger("raystage.noise").debug("%s", text.rstrip())
        return len(text)


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, e.g. stages[1].until.tokens=2M."
)


def plan_schedule(
    schedule: Any, path: Path, name: str | None, store: str | None, with_code: bool = True
) -> tuple[Any, Any]:
    """The schedule that was read from `path`, with its `init` looked up in the store, and its plan.

    name: of the run, if not the schedule's own. with_code: whether functions that the schedule names are imported.
    Raises InputError.
    """
    from raystage.plan.build import make_plan
    from raystage.plan.inputs import Sources

    try:
        if schedule.init is not None:
            init = schedule.init.model_copy(update={"source": init_source(schedule.init.source, store)})
            schedule = schedule.model_copy(update={"init": init})
        return schedule, make_plan(schedule, name, Sources(with_code=with_code))
    except InputError as error:
        raise error.inside(str(path)) from None


def name_init(base: dict[str, Any], store: str | None) -> None:
    """A stage's name in the schedule's `init` becomes its folder in the store."""
    init = base.get("init")
    if isinstance(init, dict) and isinstance(init.get("from"), str):
        init["from"] = init_source(init["from"], store)


def register_family(path: str) -> None:
    """Make the family in the file at `path` known to this command."""
    from raystage.config.family import read_family
    from raystage.models.families import register

    try:
        register(read_family(Path(path)))
    except ValueError as error:
        raise InputError(str(error), key="name", file=path) from None


# --- output ----------------------------------------------------------------------------------

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


def print_json(content: Any) -> None:
    """Print an object for machines; control characters are escaped in it."""
    click.echo(json.dumps(content, indent=1))
