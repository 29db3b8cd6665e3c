"""Models without a table: what a plan finds in them, and what it refuses with one message."""

from __future__ import annotations

import json
from pathlib import Path

import own_nets
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from labelled_files import images, texts, write_jsonl, write_npz
from raystage.config.schedule import parse
from raystage.errors import InputError
from raystage.models.build import build
from raystage.models.manifest import check_model
from raystage.models.own import own_model
from raystage.models.shape import flops_per_token, num_params, parameters, sample_flops
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan

NET = Path(own_nets.__file__)
WIDTHS = {"hidden_size": "width", "ffn_size": "inner"}
_HEADER = "import torch\nfrom torch import nn\n"


SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 32}


def planned(folder: Path, model: dict, *changes: dict, objective: str = "causal_lm", grow: str = "stack") -> Plan:
    """A first stage of that model, and one more for each change of it."""
    if objective != "classification":
        data = {"source": "jsonl", "path": str(write_jsonl(folder / "rows", texts(60))), "tokenizer": "bytes"}
        training, until = {"global_batch_tokens": 64}, {"tokens": 640}
        model = {"context_length": 16, **model}
    else:
        data = {"source": "arrays", "path": str(write_npz(folder / "npz", images(40)))}
        training, until = {"global_batch_samples": 4}, {"samples": 40}
    stages = [{"name": "first", "until": until}]
    for number, change in enumerate(changes):
        operator = {"grow": {"operator": grow}} if grow else {}
        stages.append({"name": f"more{number}", "until": until, "model": change, **operator})
    training = {**training, "workers": 1, "optimizer": {"lr": 1e-3}, "lr_schedule": {"kind": "constant", "warmup": 0}}
    return make_plan(parse({"name": "own", "data": data, "model": model, "objective": objective, "stages": stages,
                            "training": training}))  # fmt: skip


def written(folder: Path, code: str) -> str:
    file = folder / "net.py"
    file.write_text(_HEADER + code)
    return f"{file}:make"


def own(**more: object) -> dict:
    return {"family": "module", "build": f"{NET}:reader", **more}


def test_what_is_found_in_a_module(tmp_path: Path) -> None:
    shape = planned(tmp_path, own(options={"depth": 3}, widths=WIDTHS)).staged.stages[0].shape
    network = build(shape)
    assert [one.name for one in parameters(shape)] == [name for name, _ in network.named_parameters()]
    assert num_params(shape) == sum(one.numel() for one in network.parameters())
    assert (shape.num_layers, shape.hidden_size, shape.ffn_size, shape.vocab_size) == (3, 8, 16, 257)
    axes = {one.name: [(axis.role, *axis.units) for axis in one.spec.axes] for one in parameters(shape)}
    assert axes["blocks.0.up.weight"] == [("out", "ffn"), ("in", "hidden")]
    assert axes["blocks.2.norm.weight"] == [("gain", "hidden")]
    assert axes["embed.weight"] == [("fixed",), ("out", "hidden")]
    assert own_model(shape.module).norm == "rms"


@pytest.mark.parametrize("length", [16, 7])
def test_flops_are_those_that_torch_counts(tmp_path: Path, length: int) -> None:
    shape = planned(tmp_path, own(options={"depth": 2})).staged.stages[0].shape
    network, tokens = build(shape).to("meta"), torch.zeros((1, length), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(input_ids=tokens)
    assert sample_flops(shape, length) == 3 * counter.get_total_flops()
    assert flops_per_token(shape) == sample_flops(shape, 16) // 16


def test_attention_is_counted_with_its_square(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "opt", "hidden_size": 16, "ffn_dim": 32, "num_attention_heads": 2,
                                  "word_embed_proj_dim": 16, "num_hidden_layers": 3}))  # fmt: skip
    model = {"family": "transformers", "config": str(config), "num_layers": 2}
    shape = planned(tmp_path, model).staged.stages[0].shape
    linear = 6 * 16 * (2 * (4 * 16 * 16 + 2 * 16 * 32) + 16 * 257)
    assert shape.num_layers == 2
    assert sample_flops(shape, 16) == linear + 12 * 2 * 16 * 16**2


def test_the_key_holds_the_code_and_not_its_place(tmp_path: Path) -> None:
    code = NET.read_text()
    keys = []
    for name, text in (("one", code), ("two", code), ("three", code + "\n# another\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "net.py").write_text(text)
        plan = planned(tmp_path, own(build=f"{tmp_path / name / 'net.py'}:reader"))
        keys.append(plan.staged.stages[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_a_stage_changes_single_options(tmp_path: Path) -> None:
    first, second = planned(tmp_path, own(options={"width": 12}), {"options": {"depth": 2}}).staged.stages
    assert [one.num_layers for one in (first.shape, second.shape)] == [1, 2]
    assert json.loads(own_model(second.shape.module).options) == {"depth": 2, "width": 12}


@pytest.mark.parametrize(
    ("kind", "objective", "layers"),
    [
        ({"model_type": "gpt_neo", "hidden_size": 16, "num_heads": 2, "num_layers": 2,
          "attention_types": [[["global", "local"], 1]]}, "causal_lm", 2),
        ({"model_type": "bloom", "hidden_size": 16, "n_head": 2, "n_layer": 2}, "causal_lm", 2),
        ({"model_type": "xglm", "d_model": 16, "ffn_dim": 32, "attention_heads": 2, "num_layers": 2}, "causal_lm", 2),
        ({"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8], "depths": [2, 2],
          "layer_type": "basic"}, "classification", 2),
        ({"model_type": "deit", "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2,
          "intermediate_size": 32, "patch_size": 4}, "classification", 2),
        ({"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [2, 2], "num_stages": 2}, "classification", 2),
        ({"model_type": "swin", "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 2,
          "patch_size": 2}, "classification", 2),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_any_architecture_of_transformers(tmp_path: Path, kind: dict, objective: str, layers: int) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(kind))
    model = {"family": "transformers", "config": str(tmp_path)}
    shape = planned(tmp_path, model, objective=objective).staged.stages[0].shape
    assert shape.num_layers == layers
    assert isinstance(build(shape), transformers.PreTrainedModel)
    assert sample_flops(shape, 16) > 6 * 16


def test_a_network_of_images_of_transformers_learns_to_tell_classes_apart(tmp_path: Path) -> None:
    """A ConvNeXt by its config.json, on images of one brightness for each class."""
    kind = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2,
            "drop_path_rate": 0.0}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(kind))
    model = {"family": "transformers", "config": str(tmp_path)}
    shape = planned(tmp_path, model, objective="classification").staged.stages[0].shape
    torch.manual_seed(0)
    network = build(shape)
    labels = torch.arange(4 * shape.num_classes) % shape.num_classes
    size = (shape.num_channels, shape.image_size, shape.image_size)
    images = torch.randn(len(labels), *size) * 0.1 + labels[:, None, None, None] / shape.num_classes
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(network(pixel_values=images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def classifier(folder: Path, kind: dict) -> torch.nn.Module:
    """A classifier of texts, by its configuration, as a worker builds it."""
    (folder / "config.json").write_text(json.dumps({**SMALL, **kind}))
    rows = {
        "source": "jsonl",
        "path": str(write_jsonl(folder / "rows", texts(60))),
        "tokenizer": "bytes",
        "label": "label",
    }
    content = {
        "name": "own", "data": rows, "objective": "classification",
        "model": {"family": "transformers", "config": str(folder), "context_length": 16},
        "stages": [{"name": "only", "until": {"samples": 40}}], "training": {"workers": 1, "global_batch_samples": 4},
    }  # fmt: skip
    torch.manual_seed(0)
    return build(make_plan(parse(content)).staged.stages[0].shape).eval()


@pytest.mark.parametrize(
    "kind",
    [
        {"model_type": "falcon"},  # without a pad_token_id
        {"model_type": "bloom", "n_head": 2, "n_layer": 2},
        {"model_type": "opt", "ffn_dim": 32, "word_embed_proj_dim": 16},  # its pad_token_id is a token of the texts
        {"model_type": "stablelm", "num_key_value_heads": 2},
        {"model_type": "smollm3", "num_key_value_heads": 2},  # its special tokens are beyond the vocabulary of bytes
        {"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    ],
    ids=lambda kind: kind["model_type"],
)
def test_what_fills_a_text_up_does_not_change_its_class(tmp_path: Path, kind: dict) -> None:
    """A decoder tells it at the last token that the mask does not hide, whatever its `pad_token_id`."""
    network = classifier(tmp_path, kind)
    text, mask = torch.tensor([[7, 1, 9, 0, 1]]), torch.ones((1, 5), dtype=torch.int64)
    alone = network(input_ids=text, attention_mask=mask).logits
    for filling in (0, 1, 9):
        longer = torch.nn.functional.pad(text, (0, 4), value=filling)
        filled = network(input_ids=longer, attention_mask=torch.nn.functional.pad(mask, (0, 4))).logits
        torch.testing.assert_close(filled, alone)


def test_a_classifier_that_sees_what_fills_a_text_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"model.config: found scores of classes that change with what fills a text up"
    ):
        classifier(tmp_path, {"model_type": "xlnet", "d_model": 16, "n_head": 2, "n_layer": 2, "d_inner": 32})


def test_a_model_that_looks_at_values_is_counted_by_calling_it_really(tmp_path: Path) -> None:
    """A Megatron-BERT costs what a model of these sizes costs that can be called without memory."""
    costs = []
    for name in ("megatron-bert", "ernie"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name, **SMALL}))
        model = {"family": "transformers", "config": str(tmp_path)}
        shape = planned(tmp_path, model, objective="masked_lm").staged.stages[0].shape
        costs.append(sample_flops(shape, 16))
    assert costs[0] == costs[1]


def test_plans_are_made_without_a_word_of_transformers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It would warn of special tokens, of a missing is_decoder, and of padding, some of it several times."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "electra", **SMALL}))
    with pytest.raises(InputError, match="is_decoder"):
        planned(tmp_path, {"family": "transformers", "config": str(tmp_path)})
    assert capfd.readouterr() == ("", "")


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    """The limit of Mamba 2's time steps is infinite."""
    kind = {"model_type": "mamba2", "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "head_dim": 8,
            "num_heads": 4, "n_groups": 1}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(kind))
    shape = planned(tmp_path, {"family": "transformers", "config": str(tmp_path)}).staged.stages[0].shape
    assert build(shape).config.time_step_limit[1] == float("inf")


def test_classes_that_a_configuration_was_saved_with_do_not_count(tmp_path: Path) -> None:
    classes = {"id2label": {str(one): f"class {one}" for one in range(7)}, "num_labels": 7}
    kind = {
        "model_type": "resnet",
        "depths": [1, 1],
        "hidden_sizes": [8, 8],
        "embedding_size": 8,
        "layer_type": "basic",
    }
    (tmp_path / "config.json").write_text(json.dumps(kind | classes))
    model = {"family": "transformers", "config": str(tmp_path)}
    network = build(planned(tmp_path, model, objective="classification").staged.stages[0].shape)
    assert network.config.num_labels == 3


@pytest.mark.parametrize("kind", ["t5", "bart", "whisper", "mbart", "pegasus"])
@pytest.mark.parametrize("objective", ["causal_lm", "classification"])
def test_an_encoder_with_a_decoder_is_refused_in_one_line(tmp_path: Path, kind: str, objective: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(InputError) as caught:
        planned(tmp_path, {"family": "transformers", "config": str(tmp_path)}, objective=objective)
    assert str(caught.value) == (
        f"{tmp_path}/config.json: model.config: found the model_type '{kind}', an encoder with a decoder, which learn "
        "from pairs of sequences; expected a decoder (such as opt) for causal_lm and instruct, an encoder (such as "
        "roberta) for masked_lm, either of them for classification"
    )


def test_a_stage_must_say_how_a_module_grows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"grow: missing, though num_layers goes from 1 to 2"):
        planned(tmp_path, own(), {"options": {"depth": 2}}, grow="")
    with pytest.raises(InputError, match=r"model.options: found other parameters than the model before has"):
        planned(tmp_path, own(), {"options": {"width": 12}})
    with pytest.raises(InputError, match=r"nothing says which parameters write to the residual stream"):
        planned(tmp_path, own(), {"options": {"depth": 2}}, grow="identity")
    with pytest.raises(InputError, match=r"masked for a module, which is not a transformer"):
        planned(tmp_path, own(), {"options": {"depth": 2}}, grow="masked")


WRONG = {
    "another shape": ("def make(vocab_size):\n    return nn.Sequential(nn.Embedding(vocab_size, 4))\n",
                      r"found an answer of the shape \[2, 16, 4\]; expected logits of shape \[2, 16, 257\]"),
    "no numbers": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.embed = nn.Embedding(size, size)\n    def forward(self, input_ids):\n"
        "        return self.embed(input_ids)\ndef make(vocab_size):\n    return Net(vocab_size)\n",
        "found no numbered layers in the module; expected its blocks in a torch.nn.ModuleList"),
    "parameters in forward": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Embedding(size, size)])\n    def forward(self, input_ids):\n"
        "        self.more = nn.Parameter(torch.ones(3))\n        return self.layers[0](input_ids)\n"
        "def make(vocab_size):\n    return Net(vocab_size)\n",
        "found more, which forward creates; expected all parameters in __init__"),
    "chance": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Embedding(size, size)])\n    def forward(self, input_ids):\n"
        "        made = self.layers[0](input_ids)\n        return made + torch.rand_like(made)\n"
        "def make(vocab_size):\n    return Net(vocab_size)\n",
        "found two different answers to the same input in evaluation mode"),
    "state that is no tensor": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Embedding(size, size)])\n    def get_extra_state(self):\n"
        "        return {'a': 1}\n    def set_extra_state(self, state):\n        pass\n"
        "    def forward(self, input_ids):\n"
        "        return self.layers[0](input_ids)\ndef make(vocab_size):\n    return Net(vocab_size)\n",
        "found _extra_state in the module's state, a dict; expected tensors alone"),
    "lazy": ("def make(vocab_size):\n"
             "    return nn.Sequential(nn.Embedding(vocab_size, 4), nn.LazyLinear(vocab_size))\n",
             "found 1.weight, whose size is not known before a first call"),
    "frozen": ("def make(vocab_size):\n    made = nn.Sequential(nn.Embedding(vocab_size, vocab_size))\n"
               "    return made.requires_grad_(False)\n", r"found 0.weight with requires_grad=False"),
    "no module": ("def make(vocab_size):\n    return 3\n", "returned a int; expected a torch.nn.Module"),
    "failure": ("def make(vocab_size):\n    raise ValueError('too wide')\n", r"failed \(ValueError: too wide at"),
    "failure in torch": ("def make(vocab_size):\n    return nn.Linear('wide', vocab_size)\n",
                         r"failed \(TypeError: .* at .*net.py:4\)"),
    "failure in forward": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Embedding(size, size)])\n    def forward(self, input_ids):\n"
        "        return self.layers[1](input_ids)\ndef make(vocab_size):\n    return Net(vocab_size)\n",
        r"the model failed when called with input_ids of shape \[2, 16\] \(IndexError"),
    "the end": ("def make(vocab_size):\n    exit(0)\n", r"failed \(SystemExit: 0 at"),
    "the end in forward": (
        "class Net(nn.Module):\n    def __init__(self, size):\n        super().__init__()\n"
        "        self.layers = nn.ModuleList([nn.Embedding(size, size)])\n    def forward(self, input_ids):\n"
        "        exit(0)\ndef make(vocab_size):\n    return Net(vocab_size)\n",
        r"the model failed when called with input_ids of shape \[2, 16\] \(SystemExit"),
    "one for all calls": (
        "KEPT = []\ndef make(vocab_size):\n    KEPT.append(nn.Sequential(nn.Embedding(vocab_size, vocab_size)))\n"
        "    return KEPT[0]\n", "found the module of an earlier call, or one on the device meta; expected a new one"),
    "a number": ("def make(vocab_size):\n    made = nn.Sequential(nn.Embedding(vocab_size, vocab_size))\n"
                 "    made.gain = nn.Parameter(torch.tensor(1.0))\n    return made\n",
                 r"found gain, a parameter without an axis, which .*; expected one of shape \[1\]"),
    "complex numbers": (
        "def make(vocab_size):\n    made = nn.Sequential(nn.Embedding(vocab_size, vocab_size))\n"
        "    made.turn = nn.Parameter(torch.ones(3, dtype=torch.cfloat))\n    return made\n",
        "found turn of complex numbers, which no optimizer here trains"),
    "no function of that name": ("def made(vocab_size):\n    return 3\n",
                                 "net.py:make is no such function; did you mean 'made'"),
    "unknown argument": ("def make(size):\n    return size\n", r"failed \(TypeError: make\(\) missing 1 required"),
}  # fmt: skip


def test_a_module_that_was_edited_after_the_plan_is_refused(tmp_path: Path) -> None:
    """Its key is that of the code as it was."""
    code = (
        "def make(vocab_size):\n    made = nn.Sequential(nn.Embedding(vocab_size, vocab_size))\n"
        "    made[0].padding_idx = {}\n    return made\n"
    )
    before, after = (
        planned(tmp_path, {"family": "module", "build": written(tmp_path, code.format(padding))}) for padding in (3, 4)
    )
    assert build(after.staged.stages[0].shape)[0].padding_idx == 4
    with pytest.raises(InputError, match=r"model.build: the code of .*net.py:make .* is not what was planned with"):
        build(before.staged.stages[0].shape)


@pytest.mark.parametrize("name", WRONG)
def test_one_line_says_what_is_wrong_with_a_module(tmp_path: Path, name: str) -> None:
    code, said = WRONG[name]
    with pytest.raises(InputError, match=said) as caught:
        planned(tmp_path, {"family": "module", "build": written(tmp_path, code)})
    assert caught.value.key.endswith("model.build")
    assert "\n" not in str(caught.value)


TWO_LISTS = """
def make(vocab_size, depth=1):
    made = nn.Sequential()
    made.embed = nn.Embedding(vocab_size, 8)
    made.linears = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)))
    made.norms = nn.Sequential(*(nn.RMSNorm(8) for _ in range(depth)))
    made.head = nn.Linear(8, vocab_size)
    return made
"""


def test_two_lists_side_by_side_are_refused_with_a_parameter_of_the_second(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"such as norms\.1\.weight; .* inside of one block, in one list of blocks"):
        planned(tmp_path, {"family": "module", "build": written(tmp_path, TWO_LISTS)}, {"options": {"depth": 2}})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"family": "module"}, "model.build: missing"),
        (own(num_layers=2), "model.num_layers: found for family: module; expected it in the options of its function"),
        (own(options={"widht": 3}), r"options.widht: found an option that .* does not take; did you mean 'width'\?"),
        (own(config="x"), "model.config: found for module; expected it with family: transformers"),
        (own(layer_list="other"), "model.layer_list: found 'other'; expected one of blocks"),
        (own(widths={"hidden_size": "wide"}), "model.widths.hidden_size: found the option 'wide', which is no number"),
        (own(build="nowhere.py:make"), "nowhere.py cannot be read"),
        ({"family": "llama", "num_layers": 1, "hidden_size": 8, "num_heads": 2, "options": {"a": 1}},
         "model.options: found for llama; expected it with family: module"),
        ({"family": "transformers"}, "model.config: missing"),
        ({"family": "transformers", "config": "/nowhere/config.json"}, "expected a config.json"),
    ],
)  # fmt: skip
def test_keys_that_do_not_fit(tmp_path: Path, model: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        planned(tmp_path, model)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"model_type": "llama"}, "found the model_type llama, which has a table; expected family: llama"),
        ({"model_type": "nothing"}, "found the model_type 'nothing', which transformers .* does not know"),
        ({"model_type": "opt", "auto_map": {}}, "found auto_map, code of the model's own, which is not run"),
        ({"model_type": "opt", "attn_implementation": "some/kernels"}, "attn_implementation .* is code from elsewhere"),
        (
            {"model_type": "opt", "_attn_implementation": "some/kernels"},
            "_attn_implementation .* is code from elsewhere",
        ),
        (
            {"model_type": "clip"},
            r"has no clip for this objective \(AutoModelForCausalLM\); expected classification of ",
        ),
        ({"model_type": "deberta-v2"}, "expected masked_lm or classification of texts, or another architecture"),
        (
            {"model_type": "roformer", **SMALL},
            "embed_positions.weight, which this architecture does not train, .*; expected another architecture",
        ),
        ({"model_type": "roberta", **SMALL}, "some need is_decoder: true in their config.json"),
        ({"model_type": "mobilebert", "hidden_size": "wide"}, "transformers cannot read it as a mobilebert"),
        ({"model_type": "xmod", **SMALL}, "the model failed when called with .*Input language unknown"),
    ],
)
def test_configurations_that_do_not_fit(tmp_path: Path, content: dict, said: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=said):
        planned(tmp_path, {"family": "transformers", "config": str(tmp_path)})


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"data": {"window": {"mask": "document"}}},
            "mask: found document for a module, which nothing keeps",
        ),
        (
            {"training": {"activation_checkpointing": True}},
            "checkpointing: found true for a module",
        ),
    ],
)
def test_what_only_a_model_with_a_table_can(tmp_path: Path, section: dict, said: str) -> None:
    rows = str(write_jsonl(tmp_path / "rows", texts(60)))
    content = {
        "name": "own", "data": {"source": "jsonl", "path": rows, "tokenizer": "bytes", **section.get("data", {})},
        "model": own(context_length=16), "stages": [{"name": "only", "until": {"tokens": 640}}],
        "training": {"workers": 1, "global_batch_tokens": 64, **section.get("training", {})},
    }  # fmt: skip
    with pytest.raises(InputError, match=said):
        make_plan(parse(content))


def test_a_checkpoint_that_names_a_function_is_damaged(tmp_path: Path) -> None:
    """A manifest from elsewhere must not make raystage run a file."""
    shape = planned(tmp_path, own()).staged.stages[0].shape
    check_model(shape.facts())
    with pytest.raises(ValueError, match=r"model.module: .* expected a model as it is written"):
        check_model(vars(shape))
