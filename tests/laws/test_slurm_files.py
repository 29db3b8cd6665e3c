"""cluster/slurm/slurm.sh with stand-ins for what SLURM and containers bring; the drill runs Ray and a training."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from cluster_files import ROOT, planned
from ray.scripts import scripts, symmetric_run

SCRIPT = ROOT / "cluster" / "slurm" / "slurm.sh"
PATIENCE = 60
# `srun` runs its command once here, as it does on the head node.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" >srun.asked
while [[ $1 == --* ]]; do
    case $1 in --*=*) shift ;; *) shift 2 ;; esac
done
exec "$@"
"""
# `ray symmetric-run` runs what comes after `--`; so does `apptainer exec` what comes after the image.
RAY = """#!/bin/bash
printf '%s\\n' "$@" >ray.asked
while [[ $1 != -- ]]; do shift; done
shift
"$@"
"""
APPTAINER = """#!/bin/bash
printf '%s\\n' "$@" >apptainer.asked
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@"
"""
# The driver: ends with a status, or when it is asked to, as raystage does: with 130.
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >python.asked
trap 'echo saved >saved; exit 130' TERM
echo up >up
[[ -n ${DRIVER_STATUS:-} ]] && exit "$DRIVER_STATUS"
while :; do sleep 0.1; done
"""
SCONTROL = '#!/bin/bash\nprintf "%s\\n" "$*" >>scontrol.asked\n'


@dataclass
class Slurm:
    """A folder that jobs are submitted from."""

    folder: Path

    def start(self, *before: str, **variables: str) -> subprocess.Popen[str]:
        """before: a command that runs the script's."""
        given = {"SLURM_SUBMIT_DIR": str(self.folder), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
                 "SLURM_CPUS_PER_TASK": "8", **variables}  # fmt: skip
        environment = {**os.environ, "PATH": f"{self.folder}/bin:{os.environ['PATH']}", **given}
        return subprocess.Popen(
            [*before, "bash", SCRIPT], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def asked(self, of: str) -> list[str]:
        file = self.folder / f"{of}.asked"
        return file.read_text().splitlines() if file.exists() else []

    def await_file(self, name: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not (self.folder / name).exists():
            assert time.monotonic() < deadline, f"no {name}"
            time.sleep(0.02)


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "apptainer": APPTAINER}.items():
        write(tmp_path / "bin" / name, text)
    for name, text in {"ray": RAY, "python": PYTHON}.items():
        write(tmp_path / ".venv" / "bin" / name, text)
    (tmp_path / ".venv" / "bin" / "activate").write_text(f'PATH="{tmp_path}/.venv/bin:$PATH"\n')
    return Slurm(tmp_path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.mark.parametrize("status", ["0", "1"])
def test_the_job_ends_with_the_status_of_the_run(slurm: Slurm, status: str) -> None:
    job = slurm.start(DRIVER_STATUS=status)
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == int(status), output
    assert not slurm.asked("scontrol")
    assert not list(slurm.folder.glob(".raystage-*"))


def test_before_the_time_limit_the_run_saves_and_the_job_goes_back(slurm: Slurm) -> None:
    job = slurm.start()
    slurm.await_file("up")
    job.send_signal(signal.SIGTERM)  # SLURM's, as `--signal=B:TERM@120` asks for: to the script alone
    output, _ = job.communicate(timeout=PATIENCE)
    assert (slurm.folder / "saved").exists(), output
    assert slurm.asked("scontrol") == ["requeue 7"]
    assert job.returncode == 130


def test_a_signal_before_the_run_has_begun_sends_the_job_back(slurm: Slurm) -> None:
    write(
        slurm.folder / "bin" / "srun", "#!/bin/bash\necho up >up\nwhile [[ ! -e scontrol.asked ]]; do sleep 0.1; done\n"
    )
    job = slurm.start()
    slurm.await_file("up")
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=PATIENCE)
    assert slurm.asked("scontrol") == ["requeue 7"]


@pytest.mark.parametrize(
    ("nodes", "gpus", "cpus", "expected"),
    [
        ("2", None, "8", (2, 8, 0)),
        ("1", None, "4", (1, 4, 0)),
        ("4", "8", "64", (32, 8, 1)),
        ("2", "1", "16", (2, 16, 1)),
    ],
)
def test_the_workers_follow_from_nodes_and_gpus(
    slurm: Slurm, nodes: str, gpus: str | None, cpus: str, expected: tuple[int, int, int]
) -> None:
    given = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_CPUS_PER_TASK": cpus} | ({"SLURM_GPUS_ON_NODE": gpus} if gpus else {})
    slurm.start(DRIVER_STATUS="0", **given).communicate(timeout=PATIENCE)
    script, *arguments = slurm.asked("python")
    plan, store = planned(arguments)
    training = plan.staged.stages[-1].training
    assert script == "jobs/run.py"
    assert (training.workers.most, training.cpus_per_worker, training.gpus_per_worker) == expected
    assert Path(store).parent == slurm.folder


def test_symmetric_run_knows_its_options(slurm: Slurm) -> None:
    slurm.start(DRIVER_STATUS="0", SLURM_GPUS_ON_NODE="2").communicate(timeout=PATIENCE)
    command, *asked = slurm.asked("ray")
    options = asked[: asked.index("--")]
    assert command == "symmetric-run"
    own = symmetric_run.symmetric_run.make_context(command, list(options)).params
    assert own["min_nodes"] == 2
    assert re.fullmatch(r"[\d.:a-f]+:6379", own["address"])
    for_ray_start = symmetric_run.curate_and_validate_ray_start_args(list(options))
    started = scripts.start.make_context("start", ["--head", *for_ray_start]).params
    assert (started["num_cpus"], started["num_gpus"], started["temp_dir"]) == (8, 2, "/tmp/ray-7")


def test_in_apptainer(slurm: Slurm) -> None:
    (slurm.folder / ".venv" / "bin" / "activate").unlink()  # nothing outside of the image is needed
    environment = {"PATH": f"{slurm.folder}/bin:{slurm.folder}/.venv/bin:{os.environ['PATH']}"}
    job = slurm.start(DRIVER_STATUS="0", RAYSTAGE_IMAGE="raystage.sif", **environment)
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    assert slurm.asked("apptainer")[:2] == ["exec", "--nv"]
    assert slurm.asked("python")


def test_in_pyxis(slurm: Slurm) -> None:
    (slurm.folder / ".venv" / "bin" / "activate").unlink()
    environment = {"PATH": f"{slurm.folder}/bin:{slurm.folder}/.venv/bin:{os.environ['PATH']}"}
    job = slurm.start(DRIVER_STATUS="0", RAYSTAGE_IMAGE="REGISTRY#raystage:1", **environment)
    output, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, output
    asked = slurm.asked("srun")
    assert asked[asked.index("--container-image") + 1] == "REGISTRY#raystage:1"
    assert f"{slurm.folder}:{slurm.folder}" in asked[asked.index("--container-mounts") + 1]


def test_what_sbatch_is_asked() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", SCRIPT.read_text(), re.MULTILINE))
    assert asked["signal"] == "B:TERM@120"
    assert "requeue" in asked
    assert asked["open-mode"] == "append", "a job that continues would overwrite its log"


# --- with Ray

SMALL = """
name: quickstart
data:     {source: python-stdlib, tokenizer: bytes}
model:    {family: llama, num_layers: 2, hidden_size: 32, num_heads: 2, ffn_size: 64, context_length: 64}
training: {global_batch_tokens: 128}
stages:
  - {name: only, until: {tokens: 60K}}
"""
# A node of its own: `ray symmetric-run` stops every Ray process that it sees. Its address is not that of the loopback.
NODE = """
ip link set lo up && ip link add eth0 type veth peer name eth1 && ip addr add 10.9.8.1/24 dev eth0 &&
ip link set eth0 up && ip link set eth1 up && exec "$@"
"""
NEW_NODE = (
    "unshare",
    "--net",
    "--pid",
    "--mount",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "bash",
    "-c",
    NODE,
    "node",
)


@pytest.fixture
def with_ray(tmp_path: Path) -> Iterator[Slurm]:
    if subprocess.run([*NEW_NODE, "true"], capture_output=True).returncode:
        pytest.skip("makes no network namespaces here")
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        write(tmp_path / "bin" / name, text)
    write(tmp_path / ".venv" / "bin" / "activate", f'PATH="{Path(sys.executable).parent}:$PATH"\n')
    write(tmp_path / "jobs" / "run.py", (ROOT / "jobs" / "run.py").read_text())
    write(tmp_path / "jobs" / "schedules" / "quickstart.yaml", SMALL)
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    yield Slurm(tmp_path)
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


@pytest.mark.drill
@pytest.mark.end_to_end
def test_a_training_that_is_sent_back_continues(with_ray: Slurm) -> None:
    node = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2",
            "RAY_AUTH_TOKEN_PATH": str(with_ray.folder / "token"), "WANDB_MODE": "disabled"}  # fmt: skip
    job = with_ray.start(*NEW_NODE, **node)
    stages = with_ray.folder / ".raystage" / "stages"
    deadline = time.monotonic() + 5 * PATIENCE
    while not list(stages.glob("*/checkpoints/*/manifest.json")):
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (script,) = psutil.Process(job.pid).children()
    script.send_signal(signal.SIGTERM)
    output, _ = job.communicate(timeout=5 * PATIENCE)
    assert with_ray.asked("scontrol") == [f"requeue {os.getpid()}"], output
    assert job.returncode == 130, output
    assert not list(stages.glob("*/record.json"))
    job = with_ray.start(*NEW_NODE, **node)  # SLURM starts it again
    output, _ = job.communicate(timeout=5 * PATIENCE)
    assert job.returncode == 0, output
    assert "resumed" in output or "continues" in output
    assert list(stages.glob("*/record.json"))
