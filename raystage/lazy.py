"""Packages that only some plans and processes need and that are slow to import: they are imported at first use."""

from __future__ import annotations

import importlib
from typing import Any


class Lazy:
    """Stands for a module until one of its attributes is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


numpy = Lazy("numpy")
huggingface_hub = Lazy("huggingface_hub")
hf_tokenizer = Lazy("raystage.data.hf_tokenizer")  # it imports transformers
ensembling = Lazy("raystage.tools.ensemble")  # it imports deepspeed
peft = Lazy("peft")  # it imports transformers and torch
liger = Lazy("liger_kernel.transformers")  # it imports triton, and runs on GPUs alone
own_build = Lazy("raystage.models.networks.own_build")  # it imports torch
own_networks = Lazy("raystage.models.networks.inspection")  # it imports torch
