"""What `raystage grow` holds of a model that it grows: 2 GB of safetensors, in a process that is watched.

    python benchmarks/grow_memory.py

Makes a Llama's folder in a temporary one, grows it in child processes, and prints the peak of resident memory above
what the interpreter and its imports take. Needs Linux and about 11 GB of disk for a while.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from raystage.models.shape import ModelShape, parameters
from raystage.models.tables.llama import LLAMA

SHAPE = ModelShape("llama", 12, 1536, 12, 12, 128, 6144, 32000, 2048)
SHARD_BYTES = 500 * 10**6
CASES = {
    "depth, stack": ["num_layers=stack", "num_layers=24"],
    "width, duplicate": ["width=duplicate", "hidden_size=3072", "num_heads=24", "num_kv_heads=24"],
    "both, exact": ["depth=identity,width=zero_pad", "num_layers=18", "hidden_size=2048", "num_heads=16",
                    "num_kv_heads=16"],
}  # fmt: skip
MOST_MIB = 1000

# Runs in the child: the peak is counted from after the imports on.
CHILD = """
import sys
from pathlib import Path
from raystage.tools.grow import open_source, open_target, planned, write
from raystage.growth.operators import parse_operator
from raystage.growth.request import GrowthRequest
from raystage.files.filesystem import open_folder
from raystage.storage.store import Store

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) // 1024

Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
source = open_source(sys.argv[1], Store(open_folder(sys.argv[1] + "-no-store")))
request = GrowthRequest(tuple(sys.argv[4:]), parse_operator(sys.argv[3]))
write(source, planned(source, request), open_target(sys.argv[2]))
print(resident("VmHWM") - before)
"""


def make_folder(path: Path) -> None:
    """A Llama of SHAPE in fp32, sharded as `save_pretrained` shards it; filled shard by shard."""
    path.mkdir()
    shards: list[list] = [[]]
    for parameter in parameters(SHAPE):
        if 4 * sum(one.numel for one in (*shards[-1], parameter)) > SHARD_BYTES and shards[-1]:
            shards.append([])
        shards[-1].append(parameter)
    weight_map = {}
    for number, members in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({one.name: torch.randn(one.shape) for one in members}, path / name, metadata={"format": "pt"})
        weight_map |= {one.name: name for one in members}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    sizes = {key: getattr(SHAPE, field) for field, (key, _) in LLAMA.fields.items()}
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **sizes}))


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def main() -> int:
    highest = 0
    with tempfile.TemporaryDirectory(prefix="raystage-grow-") as folder:
        source = Path(folder) / "source"
        make_folder(source)
        for name, arguments in CASES.items():
            began = time.monotonic()
            with tempfile.TemporaryDirectory(dir=folder) as place:
                command = [sys.executable, "-c", CHILD, source, f"{place}/target", *arguments]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                grown = size_of(Path(place) / "target")
            highest = max(highest, int(done.stdout))
            print(f"{name}: {size_of(source) / 1e9:.2f} GB -> {grown / 1e9:.2f} GB, {int(done.stdout)} MiB resident "
                  f"above the interpreter's own, {time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
    return int(highest > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
