"""The folders of the package in the order of their ranks: the laws hold it, the documents name it."""

from __future__ import annotations

# From the lowest up. A module may import modules of its own folder and of those before it; the files that lie in the
# package itself are below all of them. A new module inherits its folder's rank.
FOLDERS = (
    "files",  # bytes: folders on any file system, safetensors, JSON with a checksum
    "models",  # shapes, parameter tables, Hugging Face folders
    "sources",  # where documents come from, one file each
    "data",  # tokenizers, tokens by position
    "objectives",  # what is learned, and its metrics
    "growth",  # operators: maps decided, applied, certified
    "config",  # what the user writes
    "plans",  # what a plan is: stages, steps, rates, keys, FLOPs, memory
    "planning",  # a schedule resolved to a plan
    "results",  # what stages and runs came to, as numbers
    "storage",  # checkpoints, finished stages, leases
    "train",  # a stage on its workers
    "cluster",  # Ray: a cluster, worker groups, what goes wrong with them
    "reports",  # results for people: tables, HTML, pictures
    "runs",  # one plan carried out
    "sweeps",  # many plans
    "jobs",  # runs as jobs of a cluster that is elsewhere
    "tools",  # whole models without a cluster, and the doctor
    "cli",  # one file per command
)
