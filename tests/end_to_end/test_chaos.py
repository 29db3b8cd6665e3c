"""A staged run under random kills of random processes ends with the bits of a calm one.

`make drills KILLS=100 SEED=3` for more of them, or others.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from conftest import PATIENCE, RayCluster, Raystage, losses_in, processes_named, wait_until
from raystage.files.filesystem import open_folder
from raystage.storage.checkpoint import Checkpoint
from raystage.storage.store import Store

KILLS, SEED = int(os.environ.get("KILLS", 30)), int(os.environ.get("SEED", 0))
STEPS_PER_KILL = 8
SECONDS_PER_KILL = 150  # a limit, not an expectation: a start costs 15 s where nothing else runs
pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(SECONDS_PER_KILL * (KILLS + 3))]
STAGES = ("small", "full", "wide")
STEPS = max(32, KILLS * STEPS_PER_KILL // len(STAGES))

# What is killed, how often, by what its command line shows.
VICTIMS = {"ray::RayTrainWorker": 6, "driver": 3, "ray::TrainController": 2, "ray::ControlActor": 1}
OURS = tuple(victim for victim in VICTIMS if victim != "driver")

SCHEDULE = f"""
name: tiny
data: {{source: text, path: text, validation_fraction: 0.3}}
model: {{hidden_size: 32, num_heads: 4, num_kv_heads: 2, ffn_size: 96, context_length: 32}}
training:
  workers: 2
  max_failures: 1000
  global_batch_tokens: 4096
  optimizer: {{lr: 5e-3}}
  lr_schedule: {{kind: wsd, warmup: 16K, decay: 0.25}}
  evaluate: {{every: 16K, tokens: 8K}}
  checkpoint: {{every: 16K}}
stages:
  - {{name: small, model: {{num_layers: 1}}, until: {{steps: {STEPS}}}}}
  - {{name: full,  model: {{num_layers: 2}}, until: {{steps: {STEPS}}}, grow: {{operator: stack}}}}
  - {{name: wide,  model: {{num_layers: 2, ffn_size: 128}}, until: {{steps: {STEPS}}}, grow: {{operator: zero_pad}},
     training: {{zero_stage: 3}}}}
"""


class Attempts:
    """A run that is started again whenever its driver has died."""

    def __init__(self, raystage: Raystage, *arguments: str | Path) -> None:
        self._raystage, self._arguments = raystage, arguments
        self.starts, self.said, self.output = 0, [], ""
        self.steps_done = 0
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.process = self._raystage.start(*self._arguments)
        self._ears = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self._ears.start()

    def _listen(self, process: subprocess.Popen) -> None:
        for line in process.stderr:
            self.said.append(line)
            if found := re.search(r"\d (\w+)\] step (\d+)/", line):
                self.steps_done = max(self.steps_done, STAGES.index(found[1]) * STEPS + int(found[2]))

    def is_finished(self) -> bool:
        """Start again what has died; what raystage gives up on purpose is started again, too: an operator would."""
        if self.process.poll() is None:
            return False
        self._ears.join()
        self.process.stderr.close()
        with self.process.stdout:
            self.output = self.process.stdout.read()
        if self.process.returncode == 0:
            return True
        assert self.process.returncode in (1, -signal.SIGKILL), "".join(self.said[-20:])
        self._start()
        return False


def processes_in(folder: Path) -> list[psutil.Process]:
    """Those whose working directory it is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def kill_one(chance: random.Random, cluster: RayCluster, attempts: Attempts) -> str | None:
    """Kill a random process of a random kind; its kind, or None where there is none at the moment."""
    kind = chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
    living = [psutil.Process(attempts.process.pid)] if kind == "driver" else processes_named(cluster.process, kind)
    if not living:
        return None
    victim = chance.choice(sorted(living, key=lambda process: process.pid))
    try:
        victim.kill()
    except psutil.NoSuchProcess:
        return None
    return kind


def shard_checksums(store: Path, report_stages: list[str]) -> dict[str, list[str]]:
    opened = Store(open_folder(store))
    return {
        key: [shard.checksum for shard in Checkpoint(opened.finished_checkpoint(key)).manifest.shards]
        for key in report_stages
    }


def stage_keys(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "stages").iterdir() if (path / "record.json").exists())


def test_random_kills_of_random_processes_change_no_bit(
    raystage: Raystage, tiny: Path, cluster: RayCluster, tmp_path: Path
) -> None:
    """Half of the kills come when training has got a bit further, spread over all stages; half at any moment of the
    start that follows another one."""
    tiny.write_text(SCHEDULE)
    run = ["run", tiny, "--wandb", "disabled", "--json"]
    calm = raystage(*run, "--store", "calm").stdout

    chance, killed, restless = random.Random(SEED), Counter(), False
    attempts = Attempts(raystage, *run, "--store", "chaos")
    began = time.monotonic()
    while not attempts.is_finished():
        assert time.monotonic() - began < SECONDS_PER_KILL * (KILLS + 2), "".join(attempts.said[-20:])
        done = killed.total()
        if done < KILLS and (restless or attempts.steps_done >= done * len(STAGES) * STEPS / (KILLS + 1)):
            time.sleep(chance.uniform(0, 8) if restless else chance.uniform(0, 0.5))
            if kind := kill_one(chance, cluster, attempts):
                killed[kind] += 1
                restless = chance.random() < 0.5
        time.sleep(0.1)

    print(f"{dict(killed)}, {attempts.starts} drivers, {time.monotonic() - began:.0f} s")
    assert killed.total() == KILLS
    assert losses_in(attempts.output) == losses_in(calm)
    keys = stage_keys(tmp_path / "calm")
    assert len(keys) == len(STAGES)
    assert shard_checksums(tmp_path / "chaos", keys) == shard_checksums(tmp_path / "calm", keys)
    wait_until(lambda: not processes_named(cluster.process, *OURS), PATIENCE, "workers or their actors are left")
    wait_until(lambda: not processes_in(tmp_path), PATIENCE, "a driver, or what it started, is left")
