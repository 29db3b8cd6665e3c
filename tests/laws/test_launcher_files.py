"""The files in cluster/launcher pass what `ray up` checks first, and spot machines tell Ray of their notice."""

from __future__ import annotations

import http.server
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_files import CLUSTER, LAUNCHER, NODE_START_SECONDS, commands, documents, patience_of, planned
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

from raystage.cluster.shutdown import LEAVE_SECONDS

CLOUDS = [name for name in LAUNCHER if "ssh" not in name]
SPOT = ["launcher/aws-spot-s3.yaml", "launcher/gcp.yaml"]
NOTICE = CLUSTER / "launcher" / "spot_notice.py"


def config_of(name: str, with_options: bool = False) -> dict[str, Any]:
    (config,) = documents(name, with_options)
    return config


@pytest.mark.parametrize("name", LAUNCHER)
@pytest.mark.parametrize("with_options", [False, True])
def test_it_passes_the_validation_of_ray_up(name: str, with_options: bool) -> None:
    validate_config(prepare_config(config_of(name, with_options)))


@pytest.mark.parametrize("name", CLOUDS)
def test_the_machines_are_as_many_as_the_job_needs(name: str) -> None:
    config = prepare_config(config_of(name))
    kinds = config["available_node_types"]
    head = config["head_node_type"]
    assert kinds[head]["resources"] == {"CPU": 0}
    assert config["max_workers"] == sum(kind["min_workers"] for kind in kinds.values())
    ((arguments),) = commands(name, "python jobs/run.py")
    plan, _ = planned(arguments)
    workers, gpus = plan.staged.stages[0].training.workers.most, kinds["gpu"]["resources"].get("GPU")
    assert workers % kinds["gpu"]["min_workers"] == 0
    assert gpus is None or workers == gpus * kinds["gpu"]["min_workers"]


@pytest.mark.parametrize("name", CLOUDS)
def test_a_job_waits_for_machines_that_the_launcher_starts(name: str) -> None:
    """`ray up` returns before they are there."""
    ((arguments),) = commands(name, "python jobs/run.py")
    assert patience_of(arguments) >= NODE_START_SECONDS


@pytest.mark.parametrize("name", LAUNCHER)
def test_it_installs_from_the_constraints(name: str) -> None:
    config = config_of(name)
    assert any("install" in one and "-c constraints.txt ." in one for one in config["setup_commands"])
    assert [source for source in config["file_mounts"].values() if not source.startswith("~")] == ["."]
    assert "~/.ray/auth_token" in config["file_mounts"].values()


@pytest.mark.parametrize("name", LAUNCHER)
def test_it_starts_ray_behind_a_token(name: str) -> None:
    config = config_of(name)
    for to_start in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        (command,) = (one for one in to_start if "ray start" in one)
        assert "RAY_AUTH_MODE=token" in command
        scripts.start.make_context("start", shlex.split(command.partition("ray start ")[2]))
        subprocess.run(["bash", "-n"], input=command, text=True, check=True)
    (head,) = (one for one in config["head_start_ray_commands"] if "ray start" in one)
    assert int(head.partition("RAY_JOB_STOP_WAIT_TIME_S=")[2].split(";")[0]) > LEAVE_SECONDS


def test_every_machine_mounts_the_store_of_aws() -> None:
    config, store = config_of("launcher/aws.yaml"), "/mnt/raystage"
    ((arguments),) = commands("launcher/aws.yaml", "python jobs/run.py")
    assert planned(arguments)[1] == store
    assert f"--volume {store}:{store}" in config["docker"]["run_options"]
    assert any(store in one and "mount -t nfs4" in one for one in config["initialization_commands"])


def test_every_machine_mounts_the_filestore_share() -> None:
    plain, shared = config_of("launcher/gcp.yaml"), config_of("launcher/gcp.yaml", with_options=True)
    assert not any("mount" in one for one in plain["initialization_commands"])
    assert "--volume /mnt/raystage:/mnt/raystage" in shared["docker"]["run_options"]
    assert any("mount -t nfs" in one for one in shared["initialization_commands"])


# ---- machines that are taken away


@pytest.mark.parametrize("name", SPOT)
def test_spot_machines_wait_for_their_notice(name: str) -> None:
    config = config_of(name)
    cloud = config["provider"]["type"]
    assert f"spot_notice.py {cloud} " in config["worker_start_ray_commands"][-1]
    assert "spot" in str(config["available_node_types"]["gpu"]["node_config"]).lower()
    assert "spot" not in str(config["available_node_types"]["head"]).lower()


class Metadata(http.server.BaseHTTPRequestHandler):
    """What both clouds' metadata servers answer: at first that there is no notice, then that there is one."""

    asked = 0

    def do_PUT(self) -> None:
        self._answer(200, "a-token")

    def do_GET(self) -> None:
        is_aws = self.path == "/latest/meta-data/spot/instance-action"
        is_right = self.headers["X-aws-ec2-metadata-token"] == "a-token" or self.headers["Metadata-Flavor"] == "Google"
        Metadata.asked += 1
        if not is_right or (is_aws and Metadata.asked == 1):
            self._answer(404, "")
        else:
            text = '{"action": "terminate"}' if is_aws else ("FALSE" if Metadata.asked == 1 else "TRUE")
            self._answer(200, text)

    def _answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_notice_drains_the_node(cloud: str, metadata: str, tmp_path: Path) -> None:
    """A stand-in for `ray`, which fails at first, writes down what it is asked; the real one reads the same options. No
    other command is there: Ray's images have no curl."""
    ray = tmp_path / "ray"
    again = f"[ -e {tmp_path}/failed ] || {{ echo >{tmp_path}/failed; exit 1; }}"
    ray.write_text(f'#!/bin/bash\n{again}\nprintf "%s\\n" "$@" >{tmp_path}/asked\n')
    ray.chmod(0o755)
    environment = {
        **os.environ, "PATH": str(tmp_path), "SPOT_METADATA": metadata, "SPOT_POLL_SECONDS": "0.1",
        "http_proxy": "http://127.0.0.1:1",
    }  # fmt: skip
    subprocess.run([sys.executable, NOTICE, cloud], env=environment, check=True, timeout=60, capture_output=True)
    assert Metadata.asked == 2
    drain, *options = (tmp_path / "asked").read_text().splitlines()
    asked = scripts.drain_node.make_context(drain, options).params
    assert drain == "drain-node"
    assert asked["deadline_remaining_seconds"] > LEAVE_SECONDS


def test_another_cloud_is_refused() -> None:
    done = subprocess.run([sys.executable, NOTICE, "azure"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "spot_notice.py: found azure; expected aws or gcp\n")
