"""The environment variables of workers, which must be set before they import torch and DeepSpeed."""

from __future__ import annotations

import os
from collections.abc import Mapping

from raystage.config.training import Training

# How workers communicate: NCCL and torch's use of it, gloo, libfabric (EFA), UCX. Those of the driver count on its
# workers, too; on a cluster that is joined, processes have otherwise the environment of their node.
PASSED_ON = ("NCCL_", "TORCH_NCCL_", "GLOO_", "FI_", "UCX_")
# What the bits on GPUs depend on besides torch's own choice of algorithms: cuBLAS needs workspaces of its own for each
# stream (https://docs.nvidia.com/cuda/cublas/#results-reproducibility), and NCCL sums in the order of a ring.
DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring"}


def passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of a driver that count on its workers."""
    return {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}


def worker_environment(training: Training, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """environment: of the driver. What it passes on takes precedence over what `deterministic` chooses."""
    has_gpu = training.gpus_per_worker > 0
    return {
        **(DETERMINISTIC if has_gpu and training.deterministic else {}),
        **passed_on(environment),
        "OMP_NUM_THREADS": str(training.cpus_per_worker),
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "TOKENIZERS_PARALLELISM": "false",
        # Where nothing is compiled, DeepSpeed would load the whole compiler to check for it (2 s).
        "TORCHDYNAMO_DISABLE": "0" if training.compile else "1",
        "DS_ACCELERATOR": "cuda" if has_gpu else "cpu",
    }
