"""Layers with a window among layers that attend to all: which they are, what they compute, and what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from exports import byte_shape, exported, folder_of, make_checkpoint, network_of
from growths import tiny
from raystage.config.training import Training
from raystage.errors import InputError
from raystage.files.reading import LocalFiles
from raystage.models.build import build, config
from raystage.models.families import FAMILIES, TRANSFORMERS
from raystage.models.hf_config import shape_of
from raystage.models.hf_folder import open_trainable
from raystage.models.manifest import check_model
from raystage.models.shape import ModelShape, attended, flops_per_token, token_flops
from raystage.models.tables.windows import KEY, LAYER_TYPES
from raystage.plans.memory import estimate

WINDOWED = [name for name, family in TRANSFORMERS.items() if family.windows]
every_family = pytest.mark.parametrize("family", WINDOWED)


def drawn(shape: ModelShape) -> torch.nn.Module:
    torch.manual_seed(1)
    network = build(shape)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


# --- which layers -------------------------------------------------------------------------------


@every_family
def test_the_kinds_of_a_family_are_those_that_transformers_makes(family: str) -> None:
    for layers in range(FAMILIES[family].fewest_layers, 15):
        made = transformers.AutoConfig.for_model(family, num_hidden_layers=layers)
        kinds = tiny(family, num_layers=layers).kinds
        assert [LAYER_TYPES[kind] for kind in kinds] == made.layer_types
        assert FAMILIES[family].windows.num_full(layers) == kinds.count("f")


@every_family
def test_a_configuration_says_the_kinds_of_its_layers(family: str) -> None:
    """In a list; without one they are the family's own."""
    for kinds in ("", "ssffs"):
        shape = tiny(family, num_layers=5, layer_kinds=kinds)
        said = json.loads(config(shape).to_json_string())
        assert said[KEY] == [LAYER_TYPES[kind] for kind in shape.kinds]
        assert shape_of(said, "config.json").layer_kinds == kinds
        said.pop(KEY)
        assert shape_of(said, "config.json").layer_kinds == ""


@pytest.mark.parametrize("found", [["full_attention"], ["full_attention", "chunked_attention"], "full_attention"])
def test_a_list_of_kinds_that_is_none_is_refused(found: object) -> None:
    said = config(tiny("gemma2")).to_dict() | {KEY: found}
    expected = (
        r"^config.json: layer_types: found .*; expected full_attention or sliding_attention for each of 2 layers$"
    )
    with pytest.raises(InputError, match=expected):
        shape_of(said, "config.json")


def test_a_manifest_holds_kinds_where_they_are_not_the_familys() -> None:
    own, other = tiny("gemma2"), tiny("gemma2", layer_kinds="ff")
    assert "layer_kinds" not in own.facts()
    assert other.facts()["layer_kinds"] == "ff"
    check_model(other.facts())
    for wrong in ("f", "fx", "fff"):
        with pytest.raises(ValueError, match=r"model.layer_kinds: found .*; expected an f or an s for every layer"):
            check_model(other.facts() | {"layer_kinds": wrong})
    assert not {"sliding_window", "query_pre_attn_scalar", "layer_kinds"} & set(tiny("llama").facts())


@every_family
def test_a_folder_of_other_kinds_is_trained_as_it_is(family: str, tmp_path: Path) -> None:
    shape = tiny(family, num_layers=3, layer_kinds="ffs", vocab_size=40)
    assert open_trainable(LocalFiles(folder_of(shape, tmp_path))).shape == shape


# --- what they compute --------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", ["ss", "sf", "ff"])
@every_family
def test_the_attention_has_the_bits_of_transformers_own(family: str, kinds: str) -> None:
    """With padding and without, where the window is shorter than the sequence."""
    shape = tiny(family, layer_kinds="" if kinds == FAMILIES[family].windows.kinds(2) else kinds)
    network = drawn(shape)
    tokens, mask = torch.randint(0, shape.vocab_size, (3, 12)), torch.ones((3, 12), dtype=torch.int64)
    mask[0, :3], mask[1, -4:] = 0, 0
    found = [network(input_ids=tokens).logits, network(input_ids=tokens, attention_mask=mask).logits[mask.bool()]]
    network.set_attn_implementation("eager")
    theirs = [network(input_ids=tokens).logits, network(input_ids=tokens, attention_mask=mask).logits[mask.bool()]]
    for mine, other in zip(found, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0 if FAMILIES[family].caps_scores else 1e-5)


@every_family
def test_a_window_hides_what_is_beyond_it(family: str) -> None:
    """In a single layer the last token's logits follow from as many tokens as it attends to."""
    shape = tiny(family, num_layers=1, layer_kinds="" if FAMILIES[family].windows.kinds(1) == "s" else "s")
    network, tokens = drawn(shape), torch.randint(0, shape.vocab_size, (1, 12))
    seen = attended(shape, 12)
    reach = seen if FAMILIES[family].objective == "next token" else seen // 2 + 1
    before = network(input_ids=tokens).logits[0, -1]
    for place, stays in ((12 - reach, False), (12 - reach - 1, True)):
        changed = tokens.clone()
        changed[0, place] = (changed[0, place] + 1) % shape.vocab_size
        assert torch.equal(network(input_ids=changed).logits[0, -1], before) is stays


def test_scores_and_logits_of_gemma2_are_capped_and_scaled() -> None:
    """By 50 and 30, and by the root of `query_pre_attn_scalar`: each shows in the logits."""
    shape = tiny("gemma2", context_length=12)
    network, tokens = drawn(shape), torch.randint(0, shape.vocab_size, (1, 12))
    with torch.no_grad():
        for layer in network.model.layers:
            layer.self_attn.q_proj.weight.mul_(30)
        network.model.norm.weight.add_(20)
    before = network(input_ids=tokens).logits
    assert before.abs().max() < 30
    for layer in network.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert not torch.allclose(network(input_ids=tokens).logits, before, atol=1e-2)
    assert network.model.layers[0].self_attn.scaling == 3**-0.5


def test_a_modernbert_is_exported_to_the_bit(tmp_path: Path) -> None:
    shape = byte_shape("modernbert", num_layers=4)
    exported(make_checkpoint(tmp_path / "saved", shape), tmp_path / "out")
    network = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, shape.vocab_size, (2, 12))
    with torch.no_grad():
        assert torch.equal(network(input_ids=tokens).logits, network_of(shape)(input_ids=tokens).logits)


# --- what they cost -----------------------------------------------------------------------------


@every_family
def test_a_window_bounds_the_cost_of_a_context(family: str) -> None:
    """Up to the window a layer costs what one costs that attends to all; beyond it no more than the window."""
    shape = tiny(family, num_layers=6)
    reach = attended(tiny(family, num_layers=1, layer_kinds="s"), 10**6)
    per_key, windowed = 12 * shape.units("query"), shape.kinds.count("s")
    whole = replace(shape, layer_kinds="ffffff")
    for length in (1, reach):
        assert token_flops(shape, length) == token_flops(whole, length)
    for length in (reach + 1, 4 * reach):
        assert token_flops(whole, length) - token_flops(shape, length) == per_key * windowed * (length - reach)
    assert attended(shape, 100, 2) == sum(100 if kind == "f" else reach for kind in shape.kinds[:2])
    listed = replace(shape, layer_kinds="fsssss")
    assert attended(listed, 100) == 100 + 5 * reach


def test_flops_of_a_published_model_by_hand() -> None:
    """Gemma 2 2B in its context of 8,192: 13 layers see half of it."""
    shape = ModelShape("gemma2", 26, 2304, 8, 4, 256, 9216, 256_000, 8192, tied_embeddings=True, sliding_window=4096,
                       query_pre_attn_scalar=256)  # fmt: skip
    layer = 2304 * 256 * (8 + 4 + 4 + 8) + 3 * 2304 * 9216 + 4 * 2304
    expected = 6 * (26 * layer + 2304 + 2304 * 256_000) + 12 * 2048 * 13 * (4096 + 8192)
    assert flops_per_token(shape) == expected


def test_scores_that_no_kernel_fuses_take_memory() -> None:
    """As many bytes as the backward pass keeps: of every score its tanh and its share."""
    shape = tiny("gemma2", num_layers=1, context_length=64)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.shape[-2:] == (64, 64):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    network = drawn(shape)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        answer = network(input_ids=torch.zeros((2, 64), dtype=torch.int64))
    assert answer.logits.requires_grad
    training = Training(workers=1, micro_batch_size=2, precision="fp32")
    plain = replace(shape, family="gemma", sliding_window=0, query_pre_attn_scalar=0)
    more = estimate(shape, training).activations_bytes - estimate(plain, training).activations_bytes
    assert sum(kept.values()) == more == 2 * 64 * 4 * 64 * 8


# --- positions of their own ---------------------------------------------------------------------


LOCAL = [name for name in WINDOWED if FAMILIES[name].local_rope_theta]


@pytest.mark.parametrize("family", LOCAL)
def test_layers_with_a_window_have_positions_of_their_own(family: str) -> None:
    """In the configuration, under new keys and old ones, and in the model."""
    shape = tiny(family, rope_theta=300.0, local_rope_theta=20.0)
    said = json.loads(config(shape).to_json_string())
    assert [said["rope_parameters"][name]["rope_theta"] for name in LAYER_TYPES.values()] == [300.0, 20.0]
    read = shape_of(said, "config.json")
    assert (read.rope_theta, read.local_rope_theta) == (300.0, 20.0)
    rotary = build(replace(shape, layer_kinds="sf")).model.rotary_emb
    assert rotary.full_attention_inv_freq[1] == pytest.approx(300.0**-0.5)
    assert rotary.sliding_attention_inv_freq[1] == pytest.approx(20.0**-0.5)
    usual = transformers.AutoConfig.for_model(family).rope_parameters
    del said["rope_parameters"]
    read = shape_of(said, "config.json")
    assert [read.rope_theta, read.local_rope_theta] == [usual[name]["rope_theta"] for name in LAYER_TYPES.values()]


def test_old_configurations_of_modernbert_have_other_keys_for_its_positions_and_windows() -> None:
    said = json.loads(config(tiny("modernbert", num_layers=4)).to_json_string())
    del said["rope_parameters"], said[KEY]
    said |= {"global_rope_theta": 500.0, "local_rope_theta": 30.0, "global_attn_every_n_layers": 2}
    shape = shape_of(said, "config.json")
    assert (shape.rope_theta, shape.local_rope_theta, shape.layer_kinds) == (500.0, 30.0, "fsfs")
    made = transformers.AutoConfig.for_model(**said)
    assert (config(shape).rope_parameters, config(shape).layer_types) == (made.rope_parameters, made.layer_types)


def test_old_configurations_of_gemma3_have_other_keys_for_its_positions_and_windows() -> None:
    said = json.loads(config(tiny("gemma3_text", num_layers=4)).to_json_string())
    del said["rope_parameters"], said[KEY]
    said |= {"rope_theta": 500.0, "rope_local_base_freq": 30.0, "sliding_window_pattern": 2,
             "rope_scaling": {"rope_type": "linear", "factor": 8.0}}  # fmt: skip
    shape = shape_of(said, "config.json")
    assert (shape.rope_theta, shape.local_rope_theta, shape.layer_kinds) == (500.0, 30.0, "sfsf")
    made = transformers.AutoConfig.for_model(**said)
    assert (config(shape).rope_parameters, config(shape).layer_types) == (made.rope_parameters, made.layer_types)
    with pytest.raises(InputError, match="sliding_window_pattern: found 0; expected a whole number from 1 on"):
        shape_of(said | {"sliding_window_pattern": 0}, "config.json")


def test_scaled_positions_in_layers_with_a_window_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tiny("gemma3_text", vocab_size=40), tmp_path)
    said = json.loads((folder / "config.json").read_text())
    said["rope_parameters"]["sliding_attention"] = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10.0}
    (folder / "config.json").write_text(json.dumps(said))
    expected = "rope_parameters: found .* for sliding_attention; expected a rope_theta alone"
    with pytest.raises(InputError, match=expected):
        open_trainable(LocalFiles(folder))
