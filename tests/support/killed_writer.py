"""Writers of checkpoints that are killed on the way: a process that forks them, so that each costs milliseconds.

Started as a program of its own it reads requests from its input, one JSON object a line, and answers each with one.
The writers do what a stage's workers do: all write their shards, then the first one the manifest, then older
checkpoints go. Here a pipe between two processes stands for the process group of a Train run.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import fs

from raystage.files.filesystem import Folder
from raystage.models.shape import ModelShape
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Manifest, ParameterEntry
from raystage.storage.shards.contents import Shard, Shards
from raystage.storage.shards.writing import Piece, WrittenShard, placed, shard_name, write_shard
from raystage.storage.store import Store

KEY = "stage"
KEPT = 2
NUM_SHARDS = 2
STATES = ("fp32", "exp_avg", "exp_avg_sq")
SHAPE = ModelShape("llama", 1, 8, 2, 2, 4, 16, 3750, 10)
PARAMETER = "model.embed_tokens.weight"  # all that is written
NUMEL = SHAPE.vocab_size * SHAPE.hidden_size


# --- for the tests ----------------------------------------------------------------------------


@contextlib.contextmanager
def serving(program: str = __file__) -> Iterator[Callable[..., dict[str, Any]]]:
    """A server of killed writers: called with a request's fields (see `_served`), it gives the answer.

    program: the server; `killed_saver` is another.
    """
    command = [sys.executable, program]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as server:

        def ask(**request: Any) -> dict[str, Any]:
            server.stdin.write(json.dumps(request).encode() + b"\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


def open_store(path: str | Path) -> Store:
    return Store(Folder(fs.LocalFileSystem(use_mmap=True), str(path)))


def values(tokens: int, state: str) -> np.ndarray:
    """What a checkpoint of so many tokens holds of the one parameter: no two hold the same."""
    return np.random.default_rng([tokens, STATES.index(state)]).standard_normal(NUMEL, dtype=np.float32)


def manifest(tokens: int, shards: Shards) -> Manifest:
    entry = ParameterEntry(PARAMETER, (SHAPE.vocab_size, SHAPE.hidden_size), "float32", tokens)
    return Manifest(SHAPE, (entry,), shards, KEY, tokens, tokens, {}, {}, {}, {})


# --- dying ------------------------------------------------------------------------------------


class Fuse:
    """Kills this very process at the n-th thing it does to the file system; `passed` counts them."""

    def __init__(self, kill_at: int | None) -> None:
        self.kill_at, self.passed = kill_at, 0

    def burn(self) -> None:
        self.passed += 1
        if self.passed == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, action: Callable) -> Callable:
        def burning(*arguments: Any) -> Any:
            self.burn()
            return action(*arguments)

        return burning


class FusedFile:
    """A file whose every write may end in the middle."""

    def __init__(self, file: Any, fuse: Fuse) -> None:
        self.file, self.fuse = file, fuse
        self.tell = file.tell
        self.close = fuse.before(file.close)

    def write(self, data: Any) -> None:
        data = memoryview(data)
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self.fuse.burn()
            self.file.write(part)


class FusedFileSystem(fs.LocalFileSystem):
    """The local file system, its every change one that may be the last."""

    fuse: Fuse

    def create_dir(self, *arguments: Any, **options: Any) -> None:
        self.fuse.burn()
        super().create_dir(*arguments, **options)

    def open_output_stream(self, *arguments: Any, **options: Any) -> Any:
        self.fuse.burn()
        return FusedFile(super().open_output_stream(*arguments, **options), self.fuse)

    def delete_dir(self, path: str) -> None:
        for name in sorted(os.listdir(path), reverse=True):  # the shards first: the manifest still speaks of them
            self.fuse.burn()
            os.unlink(f"{path}/{name}")
        self.fuse.burn()
        os.rmdir(path)


def fused_store(path: str, fuse: Fuse) -> Store:
    """The store at `path`; all that is done to it burns the fuse. For a process that is used for nothing else."""
    os.fsync, os.replace = fuse.before(os.fsync), fuse.before(os.replace)
    system = FusedFileSystem(use_mmap=True)
    system.fuse = fuse
    return Store(Folder(system, path))


# --- writing ----------------------------------------------------------------------------------


def write_checkpoints(store: Store, rank: int, request: dict[str, Any], peer: socket.socket | None) -> Iterator[int]:
    """Go on from the furthest whole checkpoint as one of the writers; yields 0 when it begins and the tokens of each
    that is finished."""
    yield 0
    latest = store.latest_checkpoint(KEY)
    done = checkpoint.read_manifest(latest).tokens if latest else 0
    for tokens in range(done + 1, done + 1 + request["checkpoints"]):
        folder = store.checkpoint_folder(KEY, tokens, request["attempt"])
        shards = [_write_shard(folder, tokens, number) for number in range(rank, NUM_SHARDS, request["writers"])]
        if rank == 0:
            shards += _received(peer) if peer else []
            checkpoint.commit(folder, manifest(tokens, placed(shards)))
            yield tokens
            store.drop_older_checkpoints(KEY, KEPT)
        _meet(peer, rank, shards)


def _write_shard(folder: Folder, tokens: int, number: int) -> WrittenShard:
    start, stop = (NUMEL * edge // NUM_SHARDS for edge in (number, number + 1))
    pieces: list[Piece] = [(PARAMETER, state, start, values(tokens, state)[start:stop]) for state in STATES]
    return write_shard(folder, shard_name(number, NUM_SHARDS), pieces)


def _received(peer: socket.socket) -> list[WrittenShard]:
    """The other writer's shards; where it died this one ends, as a worker does that loses its process group."""
    line = b""
    while not line.endswith(b"\n"):
        part = peer.recv(2**16)
        if not part:
            os._exit(1)
        line += part
    return [WrittenShard(Shard(**one["file"]), tuple(map(tuple, one["spans"]))) for one in json.loads(line)]


def _meet(peer: socket.socket | None, rank: int, shards: list[WrittenShard]) -> None:
    """The second writer hands its shards over and waits until the first one is through with the checkpoint."""
    if peer and rank == 0:
        peer.sendall(b"!")
    elif peer:
        peer.sendall(json.dumps([asdict(shard) for shard in shards]).encode() + b"\n")
        if not peer.recv(1):
            os._exit(1)


# --- the server -------------------------------------------------------------------------------


Write = Callable[[Store, int, dict[str, Any], socket.socket | None], Iterator[int]]


def _served(request: dict[str, Any], write: Write) -> dict[str, Any]:
    """Let the writers write until they are through or one is killed.

    store, attempt, checkpoints, writers: what they write. victim: who is killed. kill_at: at the n-th thing it does
    to the file system; kill_after: so many seconds after all have begun. Both may be null.
    Answers with the tokens of the last finished checkpoint that the first writer knew of (0: none), what the victim
    did to the file system where it came to the end, and whether it was killed.
    """
    said, saying = os.pipe()
    peers = socket.socketpair() if request["writers"] == 2 else (None,)
    children = []
    for rank in range(request["writers"]):
        child = os.fork()
        if not child:
            os.close(said)
            for other in peers[:rank] + peers[rank + 1 :]:
                other.close()
            _live(request, rank, peers[rank], saying, write)
        children.append(child)
    os.close(saying)
    for peer in filter(None, peers):
        peer.close()
    with os.fdopen(said) as lines:
        if request["kill_after"] is not None:
            for _ in children:  # of each the first word is that it has begun, before any checkpoint is finished
                lines.readline()
            time.sleep(request["kill_after"])
            os.kill(children[request["victim"]], signal.SIGKILL)
        words = [line.split() for line in lines]
    statuses = [os.waitpid(child, 0)[1] for child in children]
    return {
        "finished": max((int(number) for word, number in words if word == "finished"), default=0),
        "passed": max((int(number) for word, number in words if word == "passed"), default=0),
        "killed": os.WIFSIGNALED(statuses[request["victim"]]),
    }


def _live(request: dict[str, Any], rank: int, peer: socket.socket | None, saying: int, write: Write) -> None:
    """A writer's whole life."""
    is_victim = rank == request["victim"]
    fuse = Fuse(request["kill_at"] if is_victim else None)
    try:
        for tokens in write(fused_store(request["store"], fuse), rank, request, peer):
            os.write(saying, f"finished {tokens}\n".encode())
        if is_victim:
            os.write(saying, f"passed {fuse.passed}\n".encode())
        os._exit(0)
    except BrokenPipeError:  # the other writer was killed
        os._exit(1)
    finally:
        os._exit(2)


def main(write: Write = write_checkpoints) -> None:
    for line in sys.stdin:
        print(json.dumps(_served(json.loads(line), write)), flush=True)


if __name__ == "__main__":
    main()
