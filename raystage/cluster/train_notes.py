"""Where Ray Train keeps its own notes on a run: a folder that nobody needs once the driver has ended.

A driver that is killed leaves it. So the folder says whose it is, and the next driver removes those of the dead.
"""

from __future__ import annotations

import json
import re
import time
import uuid

from raystage.files.filesystem import Folder, open_folder
from raystage.files.reading import parse_json
from raystage.storage.processes import ProcessId, is_gone, this_process

NOTES = "ray"
OWNER_FILE = "driver.json"
# Of a driver on another machine nothing is known.
OLD_SECONDS = 7 * 24 * 3600.0
_NAME = re.compile(r"[0-9a-f]{1,12}-[0-9a-f]{8}")
_MOST_BYTES = 10_000


def new_notes(place: str, key: str) -> Folder:
    """A new folder in `place`, named after a stage's key, that says that it is this process's. Raises StorageError."""
    folder = open_folder(place) / NOTES / f"{key[:12]}-{uuid.uuid4().hex[:8]}"
    folder.write_whole(OWNER_FILE, json.dumps(this_process().to_json()).encode())
    return folder


def abandoned_notes(store: Folder) -> list[Folder]:
    """The folders in a store whose drivers have ended. A store may be a folder that has a `ray` of its own: what is not
    called as notes are, or lies behind a link, is somebody else's. Raises StorageError."""
    named = [store / NOTES / name for name in (store / NOTES).folder_names() if _NAME.fullmatch(name)]
    return [notes for notes in named if not notes.first_link(store) and _is_abandoned(notes)]


def remove_abandoned_notes(store: Folder) -> None:
    """Raises StorageError."""
    for folder in abandoned_notes(store):
        folder.delete()


def _is_abandoned(folder: Folder) -> bool:
    """Whether its driver is known to have ended, or it is old: of drivers on other machines nothing is known."""
    try:
        if is_gone(ProcessId.from_json(parse_json(folder.read(OWNER_FILE, _MOST_BYTES)))):
            return True
    except FileNotFoundError:
        pass  # of an earlier version, or begun anew after the driver had tidied up
    except (ValueError, TypeError, KeyError):
        pass  # not ours, perhaps
    changed = [file.changed_at for file in folder.files(follow_links=False)]
    return bool(changed) and time.time() - max(changed) > OLD_SECONDS
