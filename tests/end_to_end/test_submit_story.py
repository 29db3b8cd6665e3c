"""`raystage submit`: a run as a job of a cluster, from a host that is no part of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import raystage
from conftest import PATIENCE, wait_until, write_tiny
from hosts import WATCHFUL, Host, Network, send_signal
from s3_server import CREDENTIALS
from wandb_reader import read_run, run_files

pytestmark = [pytest.mark.end_to_end, pytest.mark.drill, pytest.mark.timeout(3 * PATIENCE)]

SECRET = "hunter2-of-the-submitter"
OF_A_RUN = re.compile(r"\[\d+:\d\d\] |raystage: (log|compare):")
SHORT = ["--set", "training.workers=1", "--set", "stages[0].until.steps=20", "--set", "stages[1].until.steps=20"]
# A metric of the user's own. On every worker it writes down what it finds in the environment.
METRIC = """
import os, socket
from pathlib import Path

def probe(*arguments, **options):
    folder = Path(os.environ["PROBED"])
    (folder / socket.gethostname()).write_text(os.environ.get("MY_SECRET", "nothing"))
    return {"probe": (1.0, 1.0)}
"""


class Client:
    """A host without Ray, which has raystage, a token and a project: a schedule, a text and a metric."""

    def __init__(self, host: Host, cluster: Host, project: Path, store: Path) -> None:
        self.host, self.store = host, store
        self.address = f"http://{cluster.address}:8265"
        host.run(["cp", "-r", str(project), "/tmp/project"])
        shutil.rmtree(project)  # all hosts see this one

    def command(self, *options: str) -> list[str]:
        start = ["env", "-u", "RAY_AUTH_MODE", "raystage", "submit", "tiny.yaml", "--address", self.address]
        return [*start, "--store", str(self.store), *SHORT, *options]

    def start(self, *options: str, **environment: str) -> subprocess.Popen:
        return self.host.popen(
            self.command(*options), cwd="/tmp/project", environment=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def submit(self, *options: str, status: int = 0, **environment: str) -> tuple[str, str]:
        process = self.start(*options, **environment)
        output, errors = process.communicate(timeout=2 * PATIENCE)  # with --install, nodes install torch
        assert process.returncode == status, f"exit {process.returncode}\n{output}\n{errors}"
        return output, errors


@pytest.fixture
def cluster_host(network: Network) -> Host:
    """The head of a cluster whose dashboard other hosts reach."""
    head = network.add()
    head.start_ray(2, head, {}, "--dashboard-host=0.0.0.0")
    return head


@pytest.fixture
def client(network: Network, cluster_host: Host, tmp_path: Path) -> Client:
    project = tmp_path / "project"
    project.mkdir()
    schedule = write_tiny(project)
    evaluated = "evaluate: {every: 32K, tokens: 8K, metrics: ['probe.py:probe']}"
    schedule.write_text(schedule.read_text().replace("evaluate: {every: 32K, tokens: 8K}", evaluated))
    (project / "probe.py").write_text(METRIC)
    (project / "large").write_bytes(bytes(2**20))  # nobody names it
    return Client(network.add(), cluster_host, project, tmp_path / "store")


def test_a_host_with_only_the_schedule_submits_it_and_its_secrets_are_in_no_list(
    client: Client, cluster_host: Host, tmp_path: Path
) -> None:
    (tmp_path / "probed").mkdir()
    sent = {"MY_SECRET": SECRET, "PROBED": str(tmp_path / "probed")}
    output, errors = client.submit("--env", "MY_SECRET", "--env", "PROBED", **sent)
    assert "raystage: sends MY_SECRET, PROBED" in errors
    assert "raystage: job tiny has succeeded" in errors
    assert "[staged 2/2 full] FINISHED" in output
    report = json.loads((client.store / "runs/tiny/report.json").read_text())
    assert [row["state"] for row in report["stages"]] == ["FINISHED", "FINISHED"]
    # The worker had it; the jobs, the actors and the logs of the cluster do not.
    assert [path.read_text() for path in (tmp_path / "probed").iterdir()] == [SECRET]
    jobs = cluster_host.run(["ray", "job", "list", "--address", client.address])
    assert "probe.py" not in jobs
    assert "raystage_job run tiny.yaml" in jobs
    actors = cluster_host.run(["ray", "list", "actors", "--detail", "--limit=100"])
    found = cluster_host.run(["sh", "-c", f"grep -rl {SECRET} /tmp/ray {client.store} || true"])
    assert not found
    assert SECRET not in jobs + actors + output + errors
    # The same again is another job, and trains nothing.
    output, errors = client.submit("--json", **sent)
    assert json.loads(output) == {"job": "tiny-2", "address": client.address, "state": "SUCCEEDED", "exit_status": 0}
    assert "REUSED" in errors


# An object store that refuses everybody without a key.
GUARDED_STORE = """
import os, sys
import s3_server

os.environ.update(s3_server.CREDENTIALS)
refuse = s3_server.answers("403 Forbidden", "AccessDenied")
with s3_server.running() as s3, s3.faults.injected(refuse, chosen=lambda asked: "HTTP_AUTHORIZATION" not in asked):
    print(s3.uri("bucket/runs"), flush=True)
    sys.stdin.read()
    print(s3.faults.met)
"""


def test_the_keys_of_the_submitter_open_the_store_to_every_process_of_the_job(
    client: Client, cluster_host: Host
) -> None:
    """To its driver, to the controller of its Train run, and to its workers: the nodes have no keys."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), "PROBED": "/tmp"}
    with cluster_host.popen(
        [sys.executable, "-c", GUARDED_STORE], environment=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        store = server.stdout.readline().strip()
        options = ["--store", store, "--env", "PROBED"]
        output, errors = client.submit(*options, **CREDENTIALS, **environment)
        assert "raystage: sends AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, PROBED" in errors
        assert "[staged 2/2 full] FINISHED" in output
        assert f"W&B: {store.replace('?', '/runs/tiny/wandb?')}; to upload it" in output
        output, _ = client.submit(*options, "--no-env", "--name", "without", status=2, **CREDENTIALS, **environment)
        assert "ACCESS_DENIED" in output
        server.stdin.close()
        assert int(server.stdout.read()) > 0  # of the second job


def test_a_job_that_is_stopped_saves_even_if_ray_does_not_wait_and_continues(client: Client, tmp_path: Path) -> None:
    (tmp_path / "env.yaml").write_text("env_vars: {RAY_JOB_STOP_WAIT_TIME_S: '0', PROBED: /tmp}")
    options = ["--runtime-env", str(tmp_path / "env.yaml"), "--set", "stages[0].until.steps=2000"]
    followed = client.start(*options)
    line = next(line for line in followed.stdout if "step 8/2000" in line)
    assert line
    _, errors = client.submit(*options, status=2)
    assert "job tiny of this name is RUNNING since" in errors
    client.host.run(["ray", "job", "stop", "tiny", "--address", client.address])
    _, errors = followed.communicate(timeout=PATIENCE)
    assert followed.returncode == 130, errors
    assert "raystage: job tiny was stopped" in errors
    log = client.store / "runs/tiny/run.log"
    wait_until(lambda: "interrupted" in log.read_text(), PATIENCE, "the driver did not end by itself")
    assert "to continue: raystage submit tiny.yaml" in log.read_text()
    assert "saved checkpoint" in log.read_text()
    again = client.start(*options)
    assert any("continues from step" in line for line in again.stdout)
    first, *_ = map(read_run, run_files(client.store / "runs/tiny"))
    assert first.exit_code == 1  # W&B wrote to its end, too
    send_signal(again, signal.SIGINT)  # without a terminal the job is left to itself
    _, errors = again.communicate(timeout=PATIENCE)
    assert again.returncode == 130
    assert "raystage: job tiny-2 goes on; the same command with --follow shows it again" in errors
    client.host.run(["ray", "job", "stop", "tiny-2", "--address", client.address])


def test_nodes_without_raystage_get_it_with_the_job(
    client: Client, cluster_host: Host, network: Network, tmp_path: Path
) -> None:
    (tmp_path / "nothing").mkdir()
    (other,) = network.start(1, cpus=[2])
    for host in (cluster_host, other):
        host.show(tmp_path / "nothing", Path(raystage.__file__).parent)
        assert "No module named 'raystage" in host.run(["sh", "-c", "python -c 'import raystage.api' 2>&1 || true"])
    spread = ["--set", "training.workers=2", "--set", "training.placement=spread"]
    output, errors = client.submit("--install", "--env", "PROBED", *spread, PROBED=str(tmp_path))
    assert "raystage: job tiny has succeeded" in errors
    assert "[staged 2/2 full] FINISHED" in output
    assert (tmp_path / other.name).exists()


def test_a_node_whose_tmp_is_too_full_to_install_is_named_and_waited_for(
    client: Client, cluster_host: Host, network: Network, tmp_path: Path
) -> None:
    """Ray keeps the failure of a node for ten minutes; here for a second."""
    other = network.add()
    other.start_ray(2, cluster_host, WATCHFUL | {"BAD_RUNTIME_ENV_CACHE_TTL_SECONDS": "1"})
    other.fill_tmp()
    spread = ["--set", "training.workers=2", "--set", "training.placement=spread"]
    followed = client.start("--install", "--env", "PROBED", *spread, PROBED=str(tmp_path))
    said = ""
    for line in followed.stdout:
        said += line
        print(line, end="")
        if "node 10.77.0.3 cannot set up the job's files and packages: OSError: [Errno 28] No space left" in line:
            other.run(["rm", "-f", "/tmp/filled"])
    _, errors = followed.communicate(timeout=PATIENCE)
    assert said.count("cannot set up the job's files and packages") >= 1
    assert "raystage: job tiny has succeeded" in errors
    assert (tmp_path / other.name).exists()


def test_what_is_wrong_is_one_sentence(client: Client, cluster_host: Host) -> None:
    """Of every command that goes to a cluster, from a host that is no node of it."""
    own = cluster_host.ray_address
    submit, run, doctor = client.command(), ["raystage", "run", "tiny.yaml", "--address"], ["raystage", "doctor"]
    refuses = "refuses this user's token, or is shown none; expected the cluster's token in"
    wrong, none = {"RAY_AUTH_TOKEN": "wrong" * 10}, {"HOME": "/nonexistent", "RAY_AUTH_MODE": "token"}
    for command, environment, status, message in (
        (submit, wrong, 2, refuses),
        (submit, {"HOME": "/nonexistent"}, 2, refuses),
        ([*submit, "--address", f"http://{cluster_host.address}:1"], {}, 2, "no Ray jobs at 'http://10.77.0.1:1'"),
        ([*submit, "--address", own], {}, 2, "the cluster's dashboard: http://10.77.0.1:8265"),
        ([*submit, "--store", "runs"], {}, 2, "--store: found 'runs', which is a folder on this machine"),
        ([*submit, "--python", "no-such-python"], {}, 127, "the cluster has no such Python"),
        ([*run, own], wrong, 2, refuses),
        ([*run, own], none, 2, "RAY_AUTH_MODE is token, but there is no token"),
        ([*run, own], {"RAY_AUTH_MODE": "tokens"}, 2, "RAY_AUTH_MODE: found 'tokens'; expected token or disabled"),
        ([*run, own], {}, 2, f"no node of the Ray cluster at '{own}', and the driver of a run needs one; expected "
         "raystage submit SCHEDULE --address http://10.77.0.1:8265"),
        ([*run, "ray://10.77.0.1:10001"], {}, 2, "expected 10.77.0.1:6379 on a node of the cluster"),
        ([*doctor, "--address", own], wrong, 1, refuses),
        ([*doctor, "--address", own], none, 1, "RAY_AUTH_MODE is token, but there is no token"),
    ):  # fmt: skip
        process = client.host.popen(
            command, cwd="/tmp/project", environment=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        said, _ = process.communicate(timeout=PATIENCE)
        assert (process.returncode, message in said) == (status, True), f"{command}\n{said}"
        lines = [line for line in said.splitlines() if not OF_A_RUN.match(line)]
        assert len(lines) == 1 or "doctor" in command or "--python" in command, said
        assert "Traceback" not in said
