"""An object store: pyarrow's real S3 client against a server that fails when it is told to."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner

from factories import make_record, make_schedule
from raystage.cli.main import main
from raystage.errors import CheckpointError, InputError, StorageError
from raystage.files import retry
from raystage.files.filesystem import Folder, open_folder
from raystage.files.object_stores import REQUEST_ATTEMPTS
from raystage.files.retry import Retries, is_transient, retried
from raystage.models.shape import ModelShape, parameters
from raystage.planning.build import make_plan
from raystage.plans.stage import StagePlan
from raystage.storage import checkpoint
from raystage.storage.checkpoint import Checkpoint, Manifest, ParameterEntry
from raystage.storage.shards.writing import placed, shard_name, write_shard
from raystage.storage.store import Store
from s3_server import Environ, Fault, S3Server, answers, completes_an_upload, cut_after, cut_before, cut_half_way

SHAPE = ModelShape("llama", 1, 8, 2, 2, 4, 16, 11, 10)
SLOW_DOWN = answers("503 Slow Down", "SlowDown")
INTERNAL_ERROR = answers("500 Internal Server Error", "InternalError")
FORBIDDEN = answers("403 Forbidden", "AccessDenied")
PART_BYTES = 10 * 2**20  # pyarrow's uploads go out in parts of this size


@pytest.fixture
def folder(s3: S3Server) -> Folder:
    return open_folder(s3.uri(f"bucket/{uuid.uuid4().hex}"))


@pytest.fixture
def store(folder: Folder) -> Store:
    return Store(folder)


@pytest.fixture
def stage(tmp_path: Path) -> StagePlan:
    (tmp_path / "text").mkdir()
    return make_plan(make_schedule(tmp_path / "text")).staged.stages[0]


def values_of(shape: ModelShape) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(0)
    return {one.name: drawn.standard_normal(one.shape, np.float32).ravel() for one in parameters(shape)}


def save(folder: Folder, shape: ModelShape = SHAPE, world: int = 2) -> dict[str, np.ndarray]:
    """A whole checkpoint in `world` shards; returns the weights in it."""
    values = values_of(shape)
    shards = []
    for rank in range(world):
        pieces = []
        for name, whole in values.items():
            start, stop = rank * whole.size // world, (rank + 1) * whole.size // world
            pieces += [(name, state, start, whole[start:stop]) for state in ("fp32", "exp_avg", "exp_avg_sq")]
        shards.append(write_shard(folder, shard_name(rank, world), pieces))
    entries = tuple(ParameterEntry(one.name, one.shape, "float32", 3) for one in parameters(shape))
    manifest = Manifest(shape, entries, placed(shards), "key", 3, 300, {"seed": 0}, {}, {}, {"flops": 1, "tokens": 300})
    checkpoint.commit(folder, manifest)
    return values


def assert_holds(folder: Folder, values: dict[str, np.ndarray]) -> None:
    opened = Checkpoint(folder)
    for name, whole in values.items():
        np.testing.assert_array_equal(opened.read(name, "fp32", 0, whole.size), whole)
        np.testing.assert_array_equal(opened.read(name, "exp_avg", 1, whole.size), whole[1:])
    opened.close()


# --- the same as on a disk ----------------------------------------------------------------------


def test_a_folder_opens_again_elsewhere_by_its_own_uri(folder: Folder) -> None:
    (folder / "a").write_whole("one", b"1")
    assert open_folder((folder / "a").uri).read("one") == b"1"


def test_checkpoints_are_written_and_read_by_slices(folder: Folder) -> None:
    assert_holds(folder, save(folder))


def test_a_store_keeps_records_runs_and_the_furthest_checkpoint(store: Store, stage: StagePlan) -> None:
    assert store.record(stage.key) is None
    assert store.latest_checkpoint(stage.key) is None
    assert store.read_run("tiny", "run.json") is None
    for tokens in (100, 200, 300):
        save(store.checkpoint_folder(stage.key, tokens, "one"))
    half = store.checkpoint_folder(stage.key, 400, "one")
    write_shard(half, shard_name(0, 1), [])
    store.drop_older_checkpoints(stage.key, keep=2)
    latest = store.latest_checkpoint(stage.key)
    checkpoints = store.stage_folder(stage.key) / "checkpoints"
    assert latest.name == f"{300:015}-one"
    assert checkpoints.names() == [f"{tokens:015}-one" for tokens in (200, 300, 400)]
    record = make_record(stage, 1.5, checkpoint=f"checkpoints/{latest.name}")
    store.commit_record(record)
    assert store.record(stage.key) == record
    assert store.finished_checkpoint(stage.key).path == latest.path
    assert checkpoints.names() == [latest.name]
    store.write_run("tiny", "run.json", {"state": "FINISHED"})
    assert store.read_run("tiny", "run.json") == {"state": "FINISHED"}
    assert (store.run_names(), store.stage_keys()) == (["tiny"], [stage.key])


def test_a_deleted_folder_is_gone_and_its_neighbour_is_not(folder: Folder) -> None:
    (folder / "a" / "deep").write_whole("one", b"1")
    (folder / "ab").write_whole("one", b"2")
    (folder / "a").delete()
    (folder / "a").delete()
    assert not (folder / "a").exists()
    assert folder.names() == ["ab"]


def test_grow_reads_from_and_writes_to_an_object_store(folder: Folder) -> None:
    save(folder / "small")
    arguments = [(folder / "small").uri, (folder / "large").uri, "--set", "num_layers=2"]
    done = CliRunner().invoke(main, ["grow", *arguments])
    assert done.exit_code == 0, done.output
    grown, source = Checkpoint(folder / "large"), Checkpoint(folder / "small")
    assert grown.manifest.model.num_layers == 2
    name = "model.layers.{}.mlp.up_proj.weight"
    for layer in range(2):
        found, expected = (
            opened.read(name.format(place), "fp32", 0, 128) for opened, place in ((grown, layer), (source, 0))
        )
        np.testing.assert_array_equal(found, expected)
    again = CliRunner().invoke(main, ["grow", *arguments])
    assert again.exit_code == 2
    assert "exists and is not empty" in again.output


# --- whole or not at all ------------------------------------------------------------------------


def test_a_file_is_not_there_before_it_is_complete(folder: Folder) -> None:
    def write(file: pa.NativeFile) -> None:
        file.write(bytes(2 * PART_BYTES))
        assert folder.names() == []

    folder.write_stream("shard", write)
    assert folder.size_of("shard") == 2 * PART_BYTES


@pytest.mark.parametrize("num_bytes", [10, 2 * PART_BYTES + 1])
@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "interrupted"])
def test_what_a_writer_began_is_gone_when_it_fails(folder: Folder, num_bytes: int, error: BaseException) -> None:
    def write(file: pa.NativeFile) -> None:
        file.write(bytes(num_bytes))
        raise error

    with pytest.raises(type(error)):
        folder.write_stream("shard", write)
    assert folder.names() == []


def test_an_upload_whose_end_is_refused_leaves_nothing(folder: Folder, s3: S3Server) -> None:
    with (
        s3.faults.injected(FORBIDDEN, chosen=completes_an_upload),
        pytest.raises(StorageError, match=r"shard.*written"),
    ):
        save(folder)
    assert folder.names() == []
    with pytest.raises(CheckpointError, match="not a finished checkpoint"):
        Checkpoint(folder)


def test_a_record_that_cannot_be_replaced_stays_as_it_was(folder: Folder, s3: S3Server) -> None:
    folder.write_whole("record.json", b"old")
    with s3.faults.injected(FORBIDDEN, chosen=completes_an_upload), pytest.raises(StorageError):
        folder.write_whole("record.json", b"new")
    assert folder.read("record.json") == b"old"


def test_an_upload_is_complete_even_if_the_answer_was_lost(folder: Folder, s3: S3Server) -> None:
    with s3.faults.injected(cut_after, chosen=completes_an_upload) as faults:
        folder.write_stream("shard", lambda file: file.write(b"0123456789"))
        assert faults.met
    assert folder.read("shard") == b"0123456789"


# --- what passes by itself ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [SLOW_DOWN, INTERNAL_ERROR, cut_before, cut_after, cut_half_way],
    ids=["SlowDown", "InternalError", "cut before", "cut after", "cut half way"],
)
def test_a_checkpoint_survives_a_service_that_fails_now_and_then(folder: Folder, s3: S3Server, fault: Fault) -> None:
    with s3.faults.injected(fault, every=9) as faults:
        values = save(folder)
        assert_holds(folder, values)
        (folder / "gone").write_whole("one", b"1")
        (folder / "gone").delete()
        assert not (folder / "gone").exists()
        assert faults.met > 3


@pytest.mark.parametrize(
    "action",
    [lambda at: at.read("one"), lambda at: at.names(), lambda at: at.size_of("one"), lambda at: at.delete(),
     lambda at: at.write_whole("one", b"2"), lambda at: at.open_reader("one").read_at(1, 0)],
    ids=["read", "names", "size_of", "delete", "write_whole", "open_reader"],
)  # fmt: skip
def test_an_outage_longer_than_the_clients_own_patience_is_waited_out(
    folder: Folder, s3: S3Server, action: Callable[[Folder], object]
) -> None:
    folder.write_whole("one", b"1")
    left = iter(range(REQUEST_ATTEMPTS + 1))
    with s3.faults.injected(SLOW_DOWN, chosen=lambda environ: next(left, None) is not None) as faults:
        action(folder)
        assert faults.met == REQUEST_ATTEMPTS + 1


def test_an_upload_of_several_parts_survives_lost_parts(folder: Folder, s3: S3Server) -> None:
    content = np.random.default_rng(0).bytes(3 * PART_BYTES)
    with s3.faults.injected(cut_before, every=2, chosen=lambda environ: environ["REQUEST_METHOD"] == "PUT") as faults:
        folder.write_stream("shard", lambda file: file.write(content))
        assert faults.met > 0
    assert folder.read("shard") == content


def is_part(environ: Environ) -> bool:
    return environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith("/shard")


def test_an_upload_whose_part_does_not_get_through_is_begun_again(folder: Folder, s3: S3Server) -> None:
    """The client gives up such an upload, and it cannot be gone on with."""
    pieces = [("weight", "fp32", 0, np.arange(3 * PART_BYTES // 4, dtype=np.float32))]
    expected = write_shard(folder / "calm", "shard", pieces)
    left = itertools.count(2 * REQUEST_ATTEMPTS + 1, -1)
    with s3.faults.injected(SLOW_DOWN, chosen=lambda environ: is_part(environ) and next(left) > 0) as faults:
        assert write_shard(folder, "shard", pieces) == expected
        assert faults.met > 2 * REQUEST_ATTEMPTS
    assert folder.read("shard") == (folder / "calm").read("shard")


def test_a_part_that_never_gets_through_ends_the_upload_once_patience_is_over(
    folder: Folder, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "RETRIES", Retries(0.0))
    with s3.faults.injected(SLOW_DOWN, chosen=is_part) as faults:
        with pytest.raises(StorageError, match=r"shard.*SLOW_DOWN"):
            write_shard(folder, "shard", [("weight", "fp32", 0, np.zeros(10))])
        assert faults.met >= REQUEST_ATTEMPTS
    assert folder.names() == []


# --- what does not ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action",
    [lambda at: at.read("one"), lambda at: at.names(), lambda at: at.size_of("one"), lambda at: at.delete(),
     lambda at: at.write_whole("one", b"2")],
    ids=["read", "names", "size_of", "delete", "write_whole"],
)  # fmt: skip
def test_what_is_forbidden_is_asked_once(folder: Folder, s3: S3Server, action: Callable[[Folder], object]) -> None:
    def is_ours(environ: Environ) -> bool:
        """Not what pyarrow still has to clear away of other folders."""
        return Path(folder.path).name in environ["PATH_INFO"] + environ["QUERY_STRING"]

    folder.write_whole("one", b"1")
    with (
        s3.faults.injected(FORBIDDEN, chosen=is_ours) as faults,
        pytest.raises(StorageError, match=f"^s3://{folder.path}.*cannot be"),
    ):
        action(folder)
    assert faults.met == 1


def test_what_is_not_there_is_asked_once(folder: Folder, s3: S3Server) -> None:
    with s3.faults.injected(FORBIDDEN, chosen=lambda environ: False) as faults, pytest.raises(FileNotFoundError):
        folder.read("one")
    assert faults.requests == ["HEAD"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("nowhere/runs", "no bucket 'nowhere'"), ("nowhere", "no bucket 'nowhere'"), ("", "names no bucket")],
)
def test_a_bucket_that_is_not_there_is_an_input_error(s3: S3Server, path: str, message: str) -> None:
    done = CliRunner().invoke(main, ["report", "tiny", "--store", s3.uri(path)])
    assert done.exit_code == 2
    assert done.output.startswith("raystage: store: ")
    assert message in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_wrong_key_is_an_input_error(s3: S3Server) -> None:
    with s3.faults.injected(answers("403 Forbidden", "InvalidAccessKeyId")):
        done = CliRunner().invoke(main, ["report", "tiny", "--store", s3.uri("bucket/runs")])
    assert done.exit_code == 2
    assert "s3://bucket/runs?" in done.output
    assert "ACCESS_DENIED" in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_key_in_the_uri_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match=r"s3://\*\*\*@bucket/runs; expected it in the environment") as caught:
        open_folder("s3://AKIA:a-secret-key@bucket/runs")
    assert "a-secret-key" not in str(caught.value)


# --- the policy ---------------------------------------------------------------------------------


def test_pauses_grow_up_to_a_limit_and_are_drawn_from_nothing_up_to_all_of_it() -> None:
    policy = Retries(60.0, first_seconds=0.5, longest_seconds=3.0)
    assert list(islice(policy.pauses(lambda: 1.0), 5)) == [0.5, 1.0, 2.0, 3.0, 3.0]
    assert list(islice(policy.pauses(lambda: 0.0), 5)) == [0.0] * 5
    assert next(islice(policy.pauses(lambda: 1.0), 10_000, None)) == 3.0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(104, "Connection reset by peer"), True),
        (TimeoutError(), True),
        (OSError("AWS Error SLOW_DOWN during PutObject operation: Please reduce your request rate."), True),
        (OSError("AWS Error UNKNOWN (HTTP status 502) during HeadObject operation: No response body."), True),
        (OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 28, Timeout was reached"), True),
        (OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body."), False),
        (OSError("AWS Error NO_SUCH_BUCKET during ListObjectsV2 operation: no"), False),
        (OSError("AWS Error UNKNOWN (HTTP status 400) during HeadObject operation: No response body."), False),
        (FileNotFoundError("Path does not exist 'AWS Error SLOW_DOWN'"), False),
        (PermissionError(13, "Permission denied"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_only_what_passes_by_itself_is_tried_again(error: OSError, expected: bool) -> None:
    assert is_transient(error) is expected


class Waiting:
    """A clock that a sleeper moves on."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.mark.parametrize(("failures", "attempts"), [(0, 1), (2, 3), (4, 5), (9, 5)])
def test_an_action_is_tried_until_it_succeeds_or_the_time_is_over(failures: int, attempts: int) -> None:
    tried, waiting = [], Waiting()

    def action() -> str:
        tried.append(None)
        if len(tried) <= failures:
            raise ConnectionResetError
        return "done"

    def call() -> str:
        return retried(action, Retries(3.5, 1.0, 2.0), lambda: 0.5, waiting.sleep, lambda: waiting.now)

    if failures <= 4:
        assert call() == "done"
    else:
        with pytest.raises(ConnectionResetError):
            call()
    assert len(tried) == attempts
    assert waiting.slept == [0.5, 1.0, 1.0, 1.0][: attempts - 1]


def test_what_is_repeated_at_an_interval_is_not_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "BRIEF", Retries(0.0))
    tried = []

    def action() -> None:
        tried.append(None)
        raise TimeoutError

    with pytest.raises(TimeoutError):
        retry.brief(lambda: retried(action))()
    assert len(tried) == 1


def test_a_service_that_does_not_answer_is_spoken_of_once_in_a_minute(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_said_at", float("-inf"))
    waiting = Waiting()

    def action() -> None:
        if waiting.now < 100.0:
            raise TimeoutError("timed out\nat length") if len(caplog.records) < 1 else TimeoutError

    for _ in range(2):
        retried(action, Retries(200.0), lambda: 1.0, waiting.sleep, lambda: waiting.now)
    told = [record.message for record in caplog.records]
    assert [text.partition(";")[0] for text in told] == ["the storage does not answer"] * 2
    assert told[0].endswith("trying again for 3:14 (timed out)")
    assert told[1].endswith("(TimeoutError)"), "it says nothing"
