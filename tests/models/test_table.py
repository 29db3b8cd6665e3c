"""The tables of families, for themselves; that they are transformers' models is tested with the model."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from growths import SOURCES
from raystage.models import families
from raystage.models.families import FAMILIES, register
from raystage.models.hf_table import placed
from raystage.models.shape import ModelShape, parameters
from raystage.models.table import UNITS, Family, ParameterSpec
from raystage.models.tables.mixtures import MIXTURE_OF, UPCYCLED

# Of models without a table the rows follow from the model.
TABLES = {name: family for name, family in FAMILIES.items() if family.layer}
every_family = pytest.mark.parametrize("family", TABLES.values(), ids=TABLES)


def rows_of(family: Family) -> tuple[ParameterSpec, ...]:
    on_disk = rows_of(family.on_disk) if family.on_disk else ()
    of_heads = (row for head in family.heads.values() for row in (*head.before, *head.rows))
    return (*family.before, *family.layer, *family.after, *family.optional, *on_disk, *of_heads)


@every_family
def test_rows_are_made_of_known_things(family: Family) -> None:
    for row in rows_of(family):
        assert row.init in {"normal", "ones", "zeros"}
        assert row.acts_on in {"position", "patch", "sample"}
        for axis in row.axes:
            assert axis.role in {
                "out",
                "scaled out",
                "in",
                "gain",
                "branch gain",
                "shift",
                "statistic",
                "each",
                "fixed",
            }
            assert set(axis.units) <= set(UNITS)
            assert bool(axis.fixed) == (axis.role == "fixed") == (not axis.units)


@every_family
def test_no_row_comes_twice(family: Family) -> None:
    for rows in ((*family.before, *family.layer, *family.after), family.optional):
        assert len({row.name for row in rows}) == len(rows)


@every_family
def test_layers_have_numbers_and_nothing_else_has(family: Family) -> None:
    assert all("{layer}" in row.name for row in family.layer)
    assert not any("{" in row.name for row in (*family.before, *family.after))


@every_family
def test_what_a_family_names_is_in_its_table(family: Family) -> None:
    before, after = ({row.name for row in rows} for rows in (family.before, family.after))
    before |= {row.name for head in family.heads.values() for row in head.before}
    assert set(family.embeddings) <= before
    assert {family.head, *family.untied} <= (after if family.objective else {""})
    assert all(row.name.startswith(family.base) for row in (*family.before, *family.layer))
    last = [row for row in family.layer if row.writes_residual]
    writers = sum(len(row.axes) > 1 or row.axes[0].role == "branch gain" for row in last)
    assert writers == (2 if family.has_attention else 1)


@every_family
def test_every_field_of_the_shape_has_a_name_and_a_default(family: Family) -> None:
    known = {field.name for field in fields(ModelShape)}
    assert set(family.fields) <= known
    inputs = {"image_size", "patch_size", "num_channels"} if family.reads_images else {"vocab_size", "context_length"}
    assert {"num_layers", "hidden_size", "ffn_size"} | inputs <= set(family.fields)
    assert bool(family.module) == ("num_heads" not in family.fields)
    assert family.default_norm_eps == family.fields["norm_eps"][1]
    assert ("num_kv_heads" in family.fields) == (family.has_attention and not family.heads_fill_hidden)


@pytest.mark.parametrize(("family", "head"), [(family, head) for family in FAMILIES.values() for head in family.heads])
def test_a_head_is_exchanged_and_the_body_stays(family: Family, head: str) -> None:
    table = family.with_head(head)
    body = [row for row in family.after if row.name.startswith(family.base) and row.name != family.head]
    assert table.layer == family.layer
    assert table.after == (*body, *family.heads[head].rows)
    assert set(table.head_rows) == {row.name for row in family.heads[head].rows}
    assert not {row.name for row in table.optional} & set(table.head_rows)
    assert table.with_head(head) is table
    assert family.with_head("") is family
    with pytest.raises(ValueError, match=f"found the head 'other'; a {family.name} can have {', '.join(family.heads)}"):
        family.with_head("other")


def test_norms_of_queries_and_keys() -> None:
    assert [name for name, family in FAMILIES.items() if family.norms_heads] == [
        "qwen3",
        "qwen3_moe",
        "olmo2",
        "gemma3_text",
    ]
    assert [name for name, family in FAMILIES.items() if family.norms_queries] == ["olmo2"]


def test_experts_are_made_of_rows_that_are_there() -> None:
    mixture = {row.name for name in set(MIXTURE_OF.values()) for row in rows_of(FAMILIES[name])}
    dense = {row.name for row in FAMILIES["llama"].layer}
    assert set(UPCYCLED) <= mixture
    assert {name for names in UPCYCLED.values() for name in names} <= dense


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_a_mixture_holds_the_same_on_disk(name: str) -> None:
    shape = SOURCES[name]
    in_memory, on_disk = parameters(shape), parameters(shape, FAMILIES[name].on_disk)
    assert sum(p.numel for p in in_memory) == sum(p.numel for p in on_disk)
    assert len(on_disk) - len(in_memory) == shape.num_layers * (3 * shape.num_experts - 2)
    assert {p.expert for p in on_disk} == {None, 0, 1, 2, 3}


@pytest.mark.parametrize("name", ["vit", "vit pixels"])
def test_images_hold_the_same_on_disk(name: str) -> None:
    """Under other names, one for one."""
    shape = SOURCES[name]
    on_disk = [(one.name, one.shape) for one in parameters(shape, FAMILIES["vit"].on_disk)]
    assert [(one.name, one.shape) for one in placed(shape)] == on_disk


def test_a_family_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    own = replace(FAMILIES["llama"], name="own")
    register(own)
    assert families.FAMILIES["own"] is own
    register(replace(FAMILIES["llama"], name="own"))  # the same table once more
    with pytest.raises(ValueError, match=r"^found the family 'own' a second time; expected a name of its own$"):
        register(replace(FAMILIES["gpt2"], name="own"))
