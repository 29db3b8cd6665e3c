"""Tables of models of one's own: the page's example grows a StarCoder2; what is wrong in a table is one message."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers

from folders import DEEP, GROUPED, HEADS, ODD, WIDE, assert_same, grow, grown, make
from raystage.models import families

PAGE = (Path(__file__).parents[2] / "docs/families.md").read_text()
TABLE = PAGE.split("```yaml\n")[1].split("```")[0]


@pytest.fixture
def registry() -> Iterator[None]:
    """Families that a test makes known are forgotten after it."""
    before = dict(families.FAMILIES)
    yield
    families.FAMILIES.clear()
    families.FAMILIES.update(before)


@pytest.fixture
def starcoder(tmp_path: Path, registry: None) -> tuple[Path, Path]:
    """A StarCoder2's folder, and the page's table of it."""
    torch.manual_seed(2)
    model = transformers.Starcoder2ForCausalLM(transformers.Starcoder2Config(**GROUPED))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "starcoder2.yaml").write_text(TABLE)
    return tmp_path / "source", tmp_path / "starcoder2.yaml"


@pytest.mark.parametrize(
    "arguments",
    [
        (*DEEP, "--operator=identity"),
        (*WIDE, *HEADS, "--operator=duplicate"),
        (*ODD, *DEEP, "--operator=depth=identity,width=duplicate"),
    ],
)
def test_a_model_grows_by_a_table_of_its_users(
    starcoder: tuple[Path, Path], arguments: tuple[str, ...], tmp_path: Path
) -> None:
    source, table = starcoder
    assert grown(source, tmp_path / "target", *arguments, "--family", table)["exact"] is True
    assert_same(source, tmp_path / "target")


def test_a_family_is_registered_in_python(tmp_path: Path, registry: None) -> None:
    example: dict[str, object] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], example)  # it makes my_llama known
    source = make("llama", tmp_path / "source")
    path = source / "config.json"
    path.write_text(path.read_text().replace('"model_type": "llama"', '"model_type": "my_llama"'))
    grown(source, tmp_path / "target", *DEEP, *WIDE, "--operator=depth=identity,width=duplicate")
    for folder in (source, tmp_path / "target"):
        path = folder / "config.json"
        path.write_text(path.read_text().replace("my_llama", "llama"))
    assert_same(source, tmp_path / "target")


# What is changed in the page's table, and what is said of it.
WRONG = {
    "not there": (None, None, "TABLE: no such file; expected a YAML file"),
    "not a mapping": (TABLE, "- 1", "TABLE: found a list; expected a mapping of keys to values"),
    "an unknown key": ("norm: layer", "norms: layer", "TABLE: norms: unknown key; known here: name, fields, before,"),
    "an unknown key of a row": ("init: ones", "start: ones", "TABLE: layer[12].start: unknown key; known here: name, "),
    "a name missing": ("name: starcoder2 ", "# ", "TABLE: name: missing; see docs/families.md"),
    "a name that is taken": ("name: starcoder2 ", "name: gpt2", "TABLE: name: found the family 'gpt2' a second time; "),
    "a size missing": ("  norm_eps:", "  # norm_eps:", "TABLE: fields: norm_eps is missing; expected its key in"),
    "a size unknown": ("  norm_eps:", "  eps:", "TABLE: fields.eps: found 'eps'; expected 'num_layers', 'hidden_size'"),
    "a role": ("[out: ffn, in: hidden]", "[out: ffn, from: hidden]", "TABLE: layer[8].axes[1]: found the role 'from'; "
               "expected one of out, in, gain"),
    "a unit": ("[out: ffn, in: hidden]", "[out: ffn, in: width]", "TABLE: layer[8].axes[1]: found the unit 'width'; "
               "expected one of hidden, query"),
    "no axes": ("axes: [out: ffn]", "axes: []", "TABLE: layer[9].axes: found []; "),
    "an init": ("init: ones}", "init: one}", "TABLE: layer[12].init: found 'one'; expected 'normal', 'ones'"),
    "no layer": ("model.layers.{layer}.mlp.c_fc.bias", "model.layers.0.mlp.c_fc.bias",
                 "TABLE: layer: found model.layers.0.mlp.c_fc.bias; expected '{layer}' in it"),
    "a row twice": ("mlp.c_fc.bias", "mlp.c_proj.bias",
                    "TABLE: found model.layers.{layer}.mlp.c_proj.bias twice; expected"),
    "a head": ("head: lm_head.weight", "head: lm_head", "TABLE: head: found 'lm_head'; expected one of model.norm"),
    "an axis that is wrong": ("[out: ffn, in: hidden]", "[in: hidden, out: ffn]",
                              "SOURCE: model.layers.0.mlp.c_fc.weight: found the shape [24, 16]; expected [16, 24]"),
    "a row that is not there": ("mlp.c_fc.bias", "mlp.c_in.bias",
                                "SOURCE: found no tensor for model.layers.0.mlp.c_in.bias and 1 more; expected a"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_one_message(case: str, starcoder: tuple[Path, Path], tmp_path: Path) -> None:
    source, table = starcoder
    before, after, message = WRONG[case]
    if before is None:
        table.unlink()
    else:
        assert before in TABLE
        table.write_text(TABLE.replace(before, after, 1))
    done = grow(source, tmp_path / "target", *DEEP, "--operator=identity", "--family", table)
    assert done.exit_code == 2, done.output
    assert message.replace("TABLE", str(table)).replace("SOURCE", str(source)) in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "target").exists()
