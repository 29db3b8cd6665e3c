"""What is in a store: its stages by one walk over their files and the heads of their records, and its runs."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any, TypeVar

from raystage.errors import DamagedFile, RaystageError
from raystage.files.file_facts import remembered
from raystage.files.filesystem import StoredFile
from raystage.files.sealed_json import LARGEST_BYTES, body_of
from raystage.results.record import StageRecord
from raystage.storage import checkpoint
from raystage.storage.prune import Listing, StoredCheckpoint, StoredRun, StoredStage
from raystage.storage.store import CHECKPOINTS, EARLIER, RECORD, STAGES, Store
from raystage.storage.stored_files import REPORT_FILE, RUN_FILE, record_head

Item = TypeVar("Item")
Found = TypeVar("Found")

# The files that name the stages of a run: its plan with its state, and its report.
RUN_FILES = (RUN_FILE, REPORT_FILE)
# Requests to an object store at a time. A local disk answers one thread sooner than it can hand work to others.
_REQUESTS = 16
_KEY_DIGITS = 64
_KEY = re.compile(f"[0-9a-f]{{{_KEY_DIGITS}}}")
# Digits of a key become x, everything else a blank.
_DIGITS = bytes(ord("x") if chr(code) in "0123456789abcdef" else ord(" ") for code in range(256))
_ESCAPED_DIGIT = re.compile(rb"\\u00[36]")


def survey(store: Store, may_remember: bool = False, whole: bool = True) -> Listing:
    """All stages and runs. Damaged ones are listed with what is wrong with them.

    may_remember: whether records and files of runs that are as they were, by sizes and times, need not be read again on
    this machine.
    whole: whether files are checked to their ends. Otherwise, where the checksum is right, the curves of a record are
    not looked at, nor what reports hold besides keys.
    """
    by_stage: dict[str, list[StoredFile]] = {}
    for file in (store.folder / STAGES).files():
        key, slash, path = file.path.partition("/")
        if slash and _KEY.fullmatch(key):  # what has another name was not written by raystage
            by_stage.setdefault(key, []).append(StoredFile(path, file.bytes, file.changed_at))
    stages = _stages(store, dict(sorted(by_stage.items())), may_remember, whole)
    return Listing(tuple(stages), _remembered_runs(store, whole) if may_remember else runs_of(store, whole))


def of_each(store: Store, function: Callable[[Item], Found], items: Sequence[Item]) -> list[Found]:
    """What a function that asks the store gives for each item, in their order."""
    if store.folder.is_local:
        return [function(one) for one in items]
    with ThreadPoolExecutor(_REQUESTS) as pool:
        return list(pool.map(function, items))


# --- stages -------------------------------------------------------------------------------------


def _stages(
    store: Store, by_stage: Mapping[str, list[StoredFile]], may_remember: bool, whole: bool
) -> Iterator[StoredStage]:
    """Records that cannot be read are read again each time, for the reason."""
    records = {key: file for key, files in by_stage.items() for file in files if file.path == RECORD}

    def read(key: str) -> dict[str, Any] | None:
        try:
            return facts_of(store.record(key)) if whole else _head(store, key)
        except RaystageError:
            return None

    if may_remember:
        stamps = {key: _stamp((file,)) for key, file in records.items()}
        found = _remembered(store, "records", stamps, read)
    else:
        asked = list(by_stage if whole else records)  # a pipe in place of a record is not among the files
        found = dict(zip(asked, of_each(store, read, asked), strict=True))
    for key, files in by_stage.items():
        facts = found.get(key, {})
        yield _stored(key, files, facts) if facts is not None else stage_of(store, key, files)


def _head(store: Store, key: str) -> dict[str, Any]:
    """The facts of a record, from its head where its checksum is right."""
    try:
        found = record_head(store.stage_folder(key).read(RECORD, LARGEST_BYTES), key)
    except (FileNotFoundError, ValueError):
        found = None
    return facts_of(store.record(key)) if found is None else {"finished": True, **found}


def is_finished(store: Store, key: str) -> bool:
    """Whether a stage has a record, as far as its head tells. A damaged one counts as none."""
    try:
        return bool(_head(store, key))
    except RaystageError:
        return store.readable_record(key) is not None  # says what is wrong with it


def stage_of(store: Store, key: str, files: Sequence[StoredFile]) -> StoredStage:
    """files: of the stage's folder."""
    try:
        return _stored(key, files, facts_of(store.record(key)))
    except RaystageError as error:
        return _stored(key, files, {"problem": str(error)})


def _stored(key: str, files: Sequence[StoredFile], facts: Mapping[str, Any]) -> StoredStage:
    """facts: of `facts_of`, as they are or as they were written as JSON."""
    size, changed_at = sum(file.bytes for file in files), max(file.changed_at for file in files)
    needed = tuple(facts.get("needed", ()))
    return StoredStage(key, tuple(_checkpoints(files)), size, changed_at, **{**facts, "needed": needed})


def facts_of(record: StageRecord | None) -> dict[str, Any]:
    """What a listing says of a finished stage."""
    if record is None:
        return {}
    return {
        "finished": True,
        "parent_key": record.parent_key,
        "needed": tuple(place.rsplit("/", 1)[-1] for place in record.needed_checkpoints),
        "name": record.name,
        "duration": record.duration,
        "unit": record.unit,
        "eval_loss": record.eval_loss,
    }


def _remembered(
    store: Store, kind: str, stamps: Mapping[str, tuple[int, ...] | None], read: Callable[[str], Found]
) -> dict[str, Found]:
    threads = 1 if store.folder.is_local else _REQUESTS
    return dict(remembered((kind, store.folder.uri), stamps, read, lambda _: False, threads))


def _stamp(files: Sequence[StoredFile]) -> tuple[int, ...] | None:
    """Changes where one of the files does. The first two are the time of the last change."""
    if not files:
        return None
    each = [(int(file.changed_at * 1e9), file.bytes) for file in files]
    last, _ = max(each)
    return last, last, *chain.from_iterable(each)


def _checkpoints(files: Iterable[StoredFile]) -> Iterator[StoredCheckpoint]:
    found: dict[str, list[StoredFile]] = {}
    for file in files:
        if file.path.startswith(f"{CHECKPOINTS}/") and file.path.count("/") > 1:
            found.setdefault(file.path.split("/")[1], []).append(file)
    for name, own in sorted(found.items()):
        whole = any(file.path == f"{CHECKPOINTS}/{name}/{checkpoint.MANIFEST}" for file in own)
        yield StoredCheckpoint(name, sum(file.bytes for file in own), whole)


# --- runs ---------------------------------------------------------------------------------------


def runs_of(store: Store, whole: bool = True) -> tuple[StoredRun, ...]:
    """All runs of a store, sorted by name. whole: as for `survey`."""
    return tuple(of_each(store, lambda name: run_of(store, name, whole), store.run_names()))


def _remembered_runs(store: Store, whole: bool) -> tuple[StoredRun, ...]:
    """The same. Damaged runs are read again each time, for the reason."""

    def read(name: str) -> tuple[str | None, list[str]] | None:
        run = run_of(store, name, whole)
        return None if run.problem else (run.state, sorted(run.stage_keys))

    names = store.run_names()
    stamps = dict(zip(names, of_each(store, lambda name: _stamp(_files_of_run(store, name)), names), strict=True))
    found = _remembered(store, "runs", stamps, read)
    return tuple(
        run_of(store, name, whole) if fact is None else StoredRun(name, fact[0], frozenset(fact[1]))
        for name, fact in found.items()
    )


def _files_of_run(store: Store, name: str) -> list[StoredFile]:
    """Those that `run_of` reads."""
    places = _places_of(store, name, store.run_folder(name).names())
    found = [file for place in places for file in store.run_folder(place).files(deep=False)]
    return [file for file in found if file.path in RUN_FILES]


def _places_of(store: Store, name: str, names: Sequence[str]) -> tuple[str, ...]:
    """The run and the earlier ones of its name. names: what is in its folder."""
    return (name, *(store.earlier_runs(name) if EARLIER in names else ()))


def run_of(store: Store, name: str, whole: bool = True) -> StoredRun:
    """A run with everything in its files that looks like a stage's key.

    That is: the stages of its plan and its report, the stage that its schedule starts from, and the stages in reports
    of earlier schedules of its name. A damaged file is searched too, since it may have named more.
    """
    keys: set[str] = set()
    state = problem = None
    names = store.run_folder(name).names()
    for place in _places_of(store, name, names):
        for file in RUN_FILES:
            if place == name and file not in names:
                continue
            try:
                own = None if whole else _sealed_keys(store, place, file, needs_state=state is None)
                found, own_state = own or _checked_keys(store, place, file)
                keys |= found
                state = state or (own_state if place == name else None)
            except DamagedFile as error:
                problem = problem or str(error)
                with contextlib.suppress(ValueError):  # a file that is too large to read is damaged, and known to be
                    keys |= set(keys_in(store.run_folder(place).read(file, LARGEST_BYTES)))
            except RaystageError as error:
                problem = problem or str(error)
    return StoredRun(name, "damaged" if problem else state, frozenset(keys), problem)


def _checked_keys(store: Store, place: str, file: str) -> tuple[set[str], str | None]:
    """The keys in a file of a run, and its state. Raises DamagedFile, StorageError."""
    content = store.read_run(place, file)
    if content is None:
        return set(), None
    return set(keys_in(json.dumps(content).encode())), content.get("state")


def _sealed_keys(store: Store, place: str, file: str, needs_state: bool) -> tuple[set[str], str | None] | None:
    """The same of a file whose checksum is right; None of any other. Raises StorageError."""
    with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
        body = body_of(store.run_folder(place).read(file, LARGEST_BYTES))
        if body is not None and not _ESCAPED_DIGIT.search(body):
            state = json.loads(body).get("state") if needs_state else None
            return (set(keys_in(body)), state) if state is None or isinstance(state, str) else None
    return None


def keys_in(text: bytes) -> Iterator[str]:
    """What looks like a stage's key: 64 hexadecimal digits with none beside them."""
    digits = text.translate(_DIGITS)
    at = digits.find(b"x" * _KEY_DIGITS)
    while at >= 0:
        end = digits.find(b" ", at + _KEY_DIGITS)
        end = len(digits) if end < 0 else end
        if end - at == _KEY_DIGITS:
            yield text[at:end].decode()
        at = digits.find(b"x" * _KEY_DIGITS, end)
