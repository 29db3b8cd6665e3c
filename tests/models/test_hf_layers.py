"""A folder grown in depth computes what the model with copied layers computes; or it is refused, with a way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from folders import grow, grown
from raystage.errors import InputError
from raystage.models.hf_config import check_no_rule, readings, shape_of
from raystage.models.hf_layers import _configured, deepened
from raystage.models.hf_table import folder_table
from tiny_models import config_of, families, layers_of, logits_of, model_of, with_copies

LAYERS = 4
TWICE = (0, 0, 1, 1, 2, 2, 3, 3)
# Where it goes by a layer's number what the layer is, or by lists; and one where all are alike.
BY_NUMBER = ("gemma2", "gemma3_text", "cohere2", "olmo3", "exaone4", "gpt_oss", "smollm3", "llama4_text", "gpt_neo",
             "qwen2", "gpt_neox")  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> None:
    transformers.logging.disable_progress_bar()


def saved(network: torch.nn.Module, path: Path) -> torch.nn.Module:
    """The model as plain transformers reads it from the folder that it was saved to."""
    network.save_pretrained(path)
    return load(path, type(network))


def load(path: Path, kind: type) -> torch.nn.Module:
    network, found = kind.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    assert not any(found.values()), found
    return network.eval()


def listed(order: tuple[int, ...]) -> tuple[str, ...]:
    return f"--set=num_layers={len(order)}", "--operator=layers", f"--layers={','.join(map(str, order))}"


def furthest(network: torch.nn.Module, source: Path, target: Path, order: tuple[int, ...]) -> float:
    """How far the grown folder's logits are from those of the model with copied layers."""
    grown(source, target, *listed(order))
    expected = logits_of(with_copies(network, order, LAYERS))
    return float((logits_of(load(target, type(network))) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("family", BY_NUMBER)
def test_a_grown_folder_computes_what_copied_layers_compute(family: str, tmp_path: Path) -> None:
    network = saved(model_of(config_of(family, LAYERS)), tmp_path / "source")
    assert furthest(network, tmp_path / "source", tmp_path / "target", TWICE) < 1e-5


@pytest.mark.parametrize("family", ["gemma2", "smollm3"])
def test_without_the_lists_it_would_compute_something_else(family: str, tmp_path: Path) -> None:
    """What the law above would be worth without it: nothing but the number of layers is changed here."""
    network = saved(model_of(config_of(family, LAYERS)), tmp_path / "source")
    path = tmp_path / "source/config.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in whole.items() if k not in ("layer_types", "no_rope_layers")}))
    assert furthest(network, tmp_path / "source", tmp_path / "target", TWICE) < 1e-5  # they are written out
    path = tmp_path / "target/config.json"
    deeper = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in deeper.items() if k not in ("layer_types", "no_rope_layers")}))
    expected = logits_of(with_copies(network, TWICE, LAYERS))
    assert (logits_of(load(tmp_path / "target", type(network))) - expected).abs().max() > 1e-3


def test_what_a_configuration_says_by_itself_is_not_written_out(tmp_path: Path) -> None:
    """Every second layer has a window; stacked twice, every second one has."""
    saved(model_of(config_of("gemma2", LAYERS)), tmp_path / "source")
    path = tmp_path / "source/config.json"
    whole = json.loads(path.read_text())
    del whole["layer_types"]
    path.write_text(json.dumps(whole))
    grown(tmp_path / "source", tmp_path / "target", "--set=num_layers=8", "--operator=stack")
    written = json.loads((tmp_path / "target/config.json").read_text())
    assert written == whole | {"num_hidden_layers": 8}


def test_layers_inside_of_a_larger_model(tmp_path: Path) -> None:
    """A text model beside one of images, whose configuration is in `text_config`."""
    text = config_of("gemma3_text", LAYERS).to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    network = transformers.Gemma3ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    network = saved(network, tmp_path / "source")
    assert furthest(network, tmp_path / "source", tmp_path / "target", TWICE) < 1e-5
    written = json.loads((tmp_path / "target/config.json").read_text())
    assert written["text_config"]["num_hidden_layers"] == len(written["text_config"]["layer_types"]) == 8


# --- layers that are no copies of each other ----------------------------------------------------


def modernbert(path: Path) -> torch.nn.Module:
    """Its first layer has no norm before the attention; every third one sees all tokens."""
    config = transformers.ModernBertConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        local_attention=4, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1,
        sep_token_id=2,
    )  # fmt: skip
    network = transformers.ModernBertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return saved(network, path)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 2, 3), (0, 1, 2, 3, 1, 2, 3), (0, 3, 1)])
def test_modernbert_grows_where_its_first_layer_stays_the_first(order: tuple[int, ...], tmp_path: Path) -> None:
    network = modernbert(tmp_path / "source")
    assert furthest(network, tmp_path / "source", tmp_path / "target", order) < 1e-5


@pytest.mark.parametrize("operator", ["stack", "interleave"])
def test_a_copy_of_its_first_layer_has_the_gains_of_the_norm_of_the_embeddings(operator: str, tmp_path: Path) -> None:
    """In the place of the norm that the first layer goes without: that one is before its attention there."""
    network = modernbert(tmp_path / "source")
    grown(tmp_path / "source", tmp_path / "target", "--set=num_layers=8", f"--operator={operator}")
    deeper = load(tmp_path / "target", type(network))
    place = {"stack": 4, "interleave": 1}[operator]
    assert torch.equal(deeper.model.layers[place].attn_norm.weight, network.model.embeddings.norm.weight)
    for name, values in network.model.layers[0].named_parameters():
        assert torch.equal(deeper.model.layers[place].get_parameter(name), values)
    assert deeper.config.layer_types[place] == network.config.layer_types[0] == "full_attention"


def test_a_hybrid_grows_by_whole_periods_of_its_layers_and_else_not(tmp_path: Path) -> None:
    config = config_of("jamba", LAYERS, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
                       expert_layer_offset=1, use_mamba_kernels=False)  # fmt: skip
    network = saved(model_of(config), tmp_path / "source")
    assert furthest(network, tmp_path / "source", tmp_path / "target", (0, 1, 2, 3, 0, 1, 2, 3)) < 1e-5
    done = grow(tmp_path / "source", tmp_path / "wrong", *listed(TWICE))
    assert done.exit_code == 2
    assert "as a copy of model.layers." in done.stderr


# --- models that transformers does not know -----------------------------------------------------


def renamed(path: Path, change: Callable[[dict], dict]) -> None:
    """A folder of a model type that nobody knows."""
    saved(model_of(config_of("gpt_neox", LAYERS)), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(change(config | {"model_type": "unheard_of"})))


def test_of_an_unknown_model_all_lists_of_layers_are_extended(tmp_path: Path) -> None:
    lists = {"layer_kinds": list("abcd"), "sparse_layers": [1, 3], "eos_token_id": [1, 2, 3, 4]}
    renamed(tmp_path / "source", lambda config: config | lists)
    grown(tmp_path / "source", tmp_path / "target", *listed(TWICE))
    written = json.loads((tmp_path / "target/config.json").read_text())
    assert written["layer_kinds"] == list("aabbccdd")
    assert written["sparse_layers"] == [2, 3, 6, 7]
    assert written["eos_token_id"] == [1, 2, 3, 4]


def test_an_unknown_model_with_a_rule_by_number_is_refused(tmp_path: Path) -> None:
    renamed(tmp_path / "source", lambda config: config | {"sliding_window_pattern": 6})
    done = grow(tmp_path / "source", tmp_path / "target", *listed(TWICE))
    assert done.exit_code == 2
    assert "config.json: sliding_window_pattern: found 6, which may go by a layer's number" in done.stderr
    check_no_rule({"num_hidden_layers": 4, "sliding_window_pattern": 6, "layer_types": ["a"] * 4}, "config.json")
    with pytest.raises(InputError, match="attn_layer_period"):
        check_no_rule({"num_hidden_layers": 4, "attn_layer_period": 8}, "config.json")


def test_readings_of_lists() -> None:
    """An entry for each layer, or the numbers of some; where it may be either, both are tried on the model."""
    order = (0, 2, 2, 1)
    assert readings("layer_types", list("abc"), 3, order, {}) == [list("accb"), list("abc")]
    assert readings("moe_layers", [1], 3, order, {}) == [[3], [1]]
    assert readings("moe_layers", [0, 1, 2], 3, order, {}) == [[0, 1, 2, 3], [0, 2, 2, 1], [0, 1, 2]]
    assert readings("no_rope_layers", [1, 1, 0], 3, order, {}) == [[1, 0, 0, 1], [1, 1, 0]]
    assert readings("mlp_only_layers", [], 3, order, {}) == [[]]
    kinds = {"attention_layers": ["global", "local", "local"]}
    assert readings("attention_types", [[["global", "local"], 2]], 3, order, kinds) == [
        [[["global", "local", "local", "local"], 1]]
    ]


# --- all of them --------------------------------------------------------------------------------


def error_of(network: torch.nn.Module, order: tuple[int, ...]) -> float:
    """How far the model that the grown configuration makes, with copied weights, is from copied layers; in memory.

    Raises InputError where it is refused.
    """
    config = json.loads(network.config.to_json_string()) | {"architectures": [type(network).__name__]}
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    table = folder_table(shape_of(config, "config.json"), shapes, "folder")
    deeper = deepened(config, order, "folder/config.json", table, LAYERS)
    made = _configured(deeper)
    found = transformers.AutoModelForCausalLM.from_config(made).float().eval()
    expected = with_copies(network, order, LAYERS)
    found.load_state_dict(expected.state_dict())
    expected = logits_of(expected)
    return float((logits_of(found) - expected).abs().max() / expected.abs().max())


@pytest.mark.drill
def test_every_family_that_can_be_made_is_right_or_refused() -> None:
    right, wrong = set(), {}
    for family in families():
        try:
            network = model_of(config_of(family, LAYERS))
            layers_of(network, LAYERS), logits_of(network)
        except Exception:  # sizes that do not go together or are not small, packages that are not installed
            continue
        try:
            error = error_of(network, TWICE)
        except InputError:
            continue
        (right.add(family) if error < 1e-5 else wrong.update({family: error}))
    assert not wrong
    assert right >= set(BY_NUMBER)
