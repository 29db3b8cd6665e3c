"""Workers run the driver's raystage, or none."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from ray import cloudpickle
from ray.core.generated import common_pb2

import raystage
from raystage.cluster.ray_private import JobImportingFrom
from raystage.cluster.same_code import import_path, make_comparer
from raystage.errors import OtherCode
from raystage.train.control_actor import ControlActor

PACKAGE = Path(raystage.__file__).parent
COMPARE = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb'))())"


def compared_in(folder: Path, tmp_path: Path) -> str:
    """What a process says that finds raystage in a folder first."""
    (tmp_path / "compare").write_bytes(cloudpickle.dumps(make_comparer()))
    command = [sys.executable, "-c", COMPARE, str(tmp_path / "compare")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copytree(PACKAGE, tmp_path / "clone/raystage", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "clone"


def test_the_same_sources_elsewhere_are_the_same(clone: Path, tmp_path: Path) -> None:
    assert compared_in(clone, tmp_path) == "None"


@pytest.mark.parametrize("change", ["edited", "added", "other"])
def test_other_sources_are_named_with_the_node_and_both_folders(clone: Path, tmp_path: Path, change: str) -> None:
    """Also where that raystage is of a version that has nothing to compare with."""
    match change:
        case "edited":
            (clone / "raystage/units.py").write_text((PACKAGE / "units.py").read_text() + "\n")
        case "added":
            (clone / "raystage/more.py").touch()
        case "other":
            shutil.rmtree(clone / "raystage")
            (clone / "raystage").mkdir()
            (clone / "raystage/__init__.py").touch()
    said = compared_in(clone, tmp_path)
    assert f"has {clone / 'raystage'} (version " in said
    assert f"the driver {PACKAGE} (version " in said
    assert said.endswith("install the driver's raystage on every node, and change no sources while it runs")


TORCH = metadata.version("torch").partition("+")[0]


@pytest.mark.parametrize(("there", "is_other"), [("0.1", True), (f"{TORCH}+other", False)])
def test_another_torch_is_named_with_both_versions_and_another_build_of_it_is_none(
    tmp_path: Path, there: str, is_other: bool
) -> None:
    """The first distribution on the path counts, as it does for imports."""
    info = tmp_path / "path/torch-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {there}\n")
    said = compared_in(tmp_path / "path", tmp_path)
    assert said.endswith(
        f"has torch 0.1 (the driver {TORCH}): install the same versions on every node, for example with pip install -c "
        "constraints.txt"
        if is_other
        else "None"
    )


def test_workers_import_neither_from_the_working_directory_nor_from_the_scripts_folder() -> None:
    """Ray adds both to a job's configuration right before it writes it out."""
    config = JobImportingFrom(import_path())
    config._py_driver_sys_path.extend(["/the/scripts/folder", "/the/working/directory"])
    sent = common_pb2.JobConfig.FromString(config._serialize())
    assert list(sent.py_driver_sys_path) == import_path()


def test_who_runs_an_uninstalled_clone_has_the_workers_run_it(clone: Path) -> None:
    code = "import raystage.cluster.same_code as same; print(same.import_path())"
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert done.stdout.strip() == str([str(clone.resolve())]), done.stderr


def test_a_refusal_ends_all_and_is_no_failure_of_the_workers() -> None:
    control = ControlActor()
    control.refuse("node a has other code")
    control.refuse("node b has other code")
    assert control.is_refused()
    assert control.is_over()
    assert isinstance(control.failure(), OtherCode)
    assert str(control.failure()) == "node a has other code"
