"""Folders in which Ray Train keeps its own files about a run. Nobody needs them after the driver has ended.

A driver that is killed leaves its folder behind. So each folder names its driver, and the next driver removes the
folders of drivers that have ended.
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
# Whether a driver on another machine has ended is not known. Its folder is removed after this time without changes.
OLD_SECONDS = 7 * 24 * 3600.0
_NAME = re.compile(r"[0-9a-f]{1,12}-[0-9a-f]{8}")
_MOST_BYTES = 10_000


def new_notes(place: str, key: str) -> Folder:
    """A new folder in `place` that names this process as its driver. key: of a stage. Raises StorageError."""
    folder = open_folder(place) / NOTES / f"{key[:12]}-{uuid.uuid4().hex[:8]}"
    folder.write_whole(OWNER_FILE, json.dumps(this_process().to_json()).encode())
    return folder


def abandoned_notes(store: Folder) -> list[Folder]:
    """The folders in a store whose drivers have ended. Raises StorageError.

    The store may contain another folder called `ray`. So folders with other names, and those behind a symbolic link,
    are left alone.
    """
    named = [store / NOTES / name for name in (store / NOTES).folder_names() if _NAME.fullmatch(name)]
    return [notes for notes in named if not notes.first_link(store) and _is_abandoned(notes)]


def remove_abandoned_notes(store: Folder) -> None:
    """Raises StorageError."""
    for folder in abandoned_notes(store):
        folder.delete()


def _is_abandoned(folder: Folder) -> bool:
    """Whether the folder's driver is known to have ended, or the folder has not changed for a long time."""
    try:
        if is_gone(ProcessId.from_json(parse_json(folder.read(OWNER_FILE, _MOST_BYTES)))):
            return True
    except FileNotFoundError:
        pass  # written by an earlier version, or by Ray after the driver had removed the folder
    except (ValueError, TypeError, KeyError):
        pass  # perhaps not written by raystage
    changed = [file.changed_at for file in folder.files(follow_links=False)]
    return bool(changed) and time.time() - max(changed) > OLD_SECONDS
