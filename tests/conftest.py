"""What every test starts from: no network, no GPU, caches of its own."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

import s3_server

# Before anything imports torch, DeepSpeed or W&B.
_CACHE = tempfile.mkdtemp(prefix="raystage-tests-")
atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
os.environ |= {
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCHDYNAMO_DISABLE": "1",
    "WANDB_CACHE_DIR": f"{_CACHE}/wandb",
    "WANDB_CONFIG_DIR": f"{_CACHE}/wandb",
    "WANDB_DATA_DIR": f"{_CACHE}/wandb",
    "XDG_CACHE_HOME": _CACHE,
}
# A shell that starts tests in the background has them ignore Ctrl-C, and with them all that they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes come first: a long one at the end would leave the other jobs with nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("end_to_end")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3() -> Iterator[s3_server.S3Server]:
    """One S3 server for all tests, with one bucket; every test uses a prefix of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.CREDENTIALS.items():
            patch.setenv(name, value)
        with s3_server.running() as server:
            yield server
