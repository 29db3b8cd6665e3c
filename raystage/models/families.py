"""The known model families, by name: those of transformers, networks of raystage's own, and a user's own."""

from __future__ import annotations

from raystage.models.own import BARE
from raystage.models.table import Family
from raystage.models.tables.bert import BERT, MODERNBERT
from raystage.models.tables.gemma import GEMMA, GEMMA2, GEMMA3_TEXT
from raystage.models.tables.gpt import GPT2, GPT_NEOX, PHI
from raystage.models.tables.images import VIT
from raystage.models.tables.llama import LLAMA, MISTRAL, OLMO2, PHI3, QWEN2, QWEN3
from raystage.models.tables.mixtures import MIXTRAL, QWEN3_MOE
from raystage.models.tables.networks import NETWORKS

# Those that transformers builds; their tables are in `models.tables`, by kind.
BUILT_IN = (
    LLAMA, MISTRAL, QWEN2, QWEN3, GPT2, BERT, MIXTRAL, VIT, QWEN3_MOE, OLMO2, PHI3, PHI, GPT_NEOX, GEMMA, GEMMA2,
    GEMMA3_TEXT,
    MODERNBERT,
)  # fmt: skip

TRANSFORMERS: dict[str, Family] = {family.name: family for family in BUILT_IN}
FAMILIES: dict[str, Family] = TRANSFORMERS | {family.name: family for family in NETWORKS} | BARE


# The families that a schedule can train.
TRAINED = tuple(FAMILIES)


def register(family: Family) -> None:
    """Make a user's own family known, by its name. Raises ValueError where the name is taken."""
    if FAMILIES.get(family.name, family) != family:
        raise ValueError(f"found the family {family.name!r} a second time; expected a name of its own")
    FAMILIES[family.name] = family


# For a model without a table. Only copying whole layers is possible then.
UNKNOWN = Family(name="", before=(), layer=(), after=(), embeddings=(), head="", norm="layer")


def family_of(name: str) -> Family:
    """The registered table of that name, or the empty one."""
    return FAMILIES.get(name, UNKNOWN)
