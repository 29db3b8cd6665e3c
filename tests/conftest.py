"""What every test starts from: no network, no GPU, caches of its own."""

from __future__ import annotations

import os
import tempfile

# Before anything imports torch, DeepSpeed or W&B.
_CACHE = tempfile.mkdtemp(prefix="raystage-tests-")
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
