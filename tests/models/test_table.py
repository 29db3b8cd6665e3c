"""The tables of families, for themselves; that they are transformers' models is tested with the model."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from growths import SOURCES
from raystage.models import families
from raystage.models.families import FAMILIES, register
from raystage.models.shape import ModelShape, parameters
from raystage.models.table import UNITS, Family, ParameterSpec
from raystage.models.transformers_tables import UPCYCLED

every_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


def rows_of(family: Family) -> tuple[ParameterSpec, ...]:
    on_disk = rows_of(family.on_disk) if family.on_disk else ()
    return (*family.before, *family.layer, *family.after, *family.optional, *on_disk)


@every_family
def test_rows_are_made_of_known_things(family: Family) -> None:
    for row in rows_of(family):
        assert row.init in {"normal", "ones", "zeros"}
        for axis in row.axes:
            assert axis.role in {"out", "in", "gain", "shift", "each", "fixed"}
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
    assert set(family.embeddings) <= before
    assert {family.head, *family.untied} <= after
    assert all(row.name.startswith(family.base) for row in (*family.before, *family.layer))
    assert sum(row.writes_residual and len(row.axes) > 1 for row in family.layer) == 2


@every_family
def test_every_field_of_the_shape_has_a_name_and_a_default(family: Family) -> None:
    known = {field.name for field in fields(ModelShape)}
    assert set(family.fields) <= known
    assert {"num_layers", "hidden_size", "num_heads", "ffn_size", "vocab_size", "context_length"} <= set(family.fields)
    assert family.default_norm_eps == family.fields["norm_eps"][1]
    assert ("num_kv_heads" in family.fields) == (not family.heads_fill_hidden)


def test_norms_of_heads_are_qwen3s() -> None:
    assert [name for name, family in FAMILIES.items() if family.norms_heads] == ["qwen3"]


def test_experts_are_made_of_rows_that_are_there() -> None:
    mixture = {row.name for row in rows_of(FAMILIES["mixtral"])}
    dense = {row.name for row in FAMILIES["llama"].layer}
    assert set(UPCYCLED) <= mixture
    assert {name for names in UPCYCLED.values() for name in names} <= dense


def test_a_mixture_holds_the_same_on_disk() -> None:
    shape = SOURCES["mixtral"]
    in_memory, on_disk = parameters(shape), parameters(shape, FAMILIES["mixtral"].on_disk)
    assert sum(p.numel for p in in_memory) == sum(p.numel for p in on_disk)
    assert len(on_disk) - len(in_memory) == shape.num_layers * (3 * shape.num_experts - 2)
    assert {p.expert for p in on_disk} == {None, 0, 1, 2, 3}


def test_a_family_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "FAMILIES", dict(FAMILIES))
    own = replace(FAMILIES["llama"], name="own")
    register(own)
    assert families.FAMILIES["own"] is own
    register(replace(FAMILIES["llama"], name="own"))  # the same table once more
    with pytest.raises(ValueError, match=r"^found the family 'own' a second time; expected a name of its own$"):
        register(replace(FAMILIES["gpt2"], name="own"))
