"""The types of GPUs that Ray names, and what is wrong with a name that it does not give."""

from __future__ import annotations

from difflib import get_close_matches

from raystage.plans.plan import Plan

# The most memory that a GPU of a type comes with, in GB, under Ray's names (ray.util.accelerators).
GPU_GIGABYTES = {
    "K80": 12, "P4": 8, "P100": 16, "V100": 32, "T4": 16, "A10G": 24, "L4": 24, "L40S": 48,
    "A100": 80, "A100-40G": 40, "A100-80G": 80, "H20": 141, "H100": 94, "H200": 141, "RTX-PRO-6000": 96,
    "B200": 192, "GB200": 192, "B300": 288, "GB300": 288,
    "AMD-Instinct-MI100": 32, "AMD-Instinct-MI210": 64, "AMD-Instinct-MI250X": 128, "AMD-Instinct-MI250X-MI250": 128,
    "AMD-Instinct-MI300A": 128, "AMD-Instinct-MI300X-OAM": 192, "AMD-Instinct-MI300X-HF": 192,
    "AMD-Instinct-MI308X": 192, "AMD-Instinct-MI325X-OAM": 256, "AMD-Instinct-MI350X-OAM": 288,
    "AMD-Instinct-MI355X-OAM": 288,
}  # fmt: skip


def gpu_warnings(plan: Plan) -> list[tuple[str, str, str]]:
    """Key, text and source about every type of GPU that no node is likely to have. Nodes can be started with types of
    other names, so it is no error."""
    asked = dict.fromkeys(stage.training.accelerator for stage in plan.staged.stages)
    unknown = [name for name in asked if name and name not in GPU_GIGABYTES]
    return [("training.accelerator", _problem(name), "ray.util.accelerators") for name in unknown]


def _problem(name: str) -> str:
    by_case = {one.lower(): one for one in GPU_GIGABYTES}
    near = get_close_matches(name.lower(), by_case, n=1)
    advice = f"; did you mean {by_case[near[0]]}?" if near else ""
    return f"Ray gives no GPU the type {name}: the run would wait for nodes that were started with it{advice}"
