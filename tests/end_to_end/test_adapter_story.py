"""A model is trained on text and then adapted to conversations, as a user would: run, report, export, and peft."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
import transformers

from conftest import Raystage

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.drill,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SCHEDULE = Path(__file__).parents[2] / "jobs" / "schedules" / "lora.yaml"


def test_an_adapter_is_trained_merged_and_loaded_by_peft(raystage: Raystage, tmp_path: Path) -> None:
    raystage("run", SCHEDULE, "--set", "stages[1].adapter.keep=beside", "--json", "--wandb", "disabled")
    text, chats = raystage.report("lora")["stages"]
    adapter = chats["adapter"]
    assert (adapter["rank"], adapter["modules"], adapter["num_trained"]) == (8, 21, 30_720)
    assert adapter["eval_loss"] == chats["eval_loss"] < chats["evaluations"][0]["loss"] / 3
    assert chats["flops"] / chats["tokens"] < 0.87 * text["flops"] / text["tokens"]
    for stage in ("text", "chats"):
        raystage("export", f"lora/{stage}", tmp_path / stage)
    base, merged = (transformers.AutoModelForCausalLM.from_pretrained(tmp_path / one) for one in ("text", "chats"))
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "chats" / "adapter")
    tokens = torch.arange(2, 34)[None]
    with torch.no_grad():
        assert (adapted(input_ids=tokens).logits - merged(input_ids=tokens).logits).abs().max() < 1e-4
    described = json.loads((tmp_path / "chats" / "adapter" / "adapter_config.json").read_text())
    assert (described["peft_type"], described["r"]) == ("LORA", 8)
