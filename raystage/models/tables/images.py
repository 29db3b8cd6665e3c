"""The parameter tables of families that read images.

Their positions are the patches of an image, behind one for the class token. What embeds patches is a convolution whose
kernel is a patch.
"""

from __future__ import annotations

from dataclasses import replace

from raystage.models.table import Family, Head, ParameterSpec, fixed, out, reads
from raystage.models.tables.rows import layer_norm, linear, on

_E, _L = "vit.embeddings.", "vit.layers.{layer}."
_PATCHES = _E + "patch_embeddings.projection"


_CLASS_TOKEN = ParameterSpec(_E + "cls_token", (fixed(1), fixed(1), out("hidden")))
_MASK_TOKEN = ParameterSpec(_E + "mask_token", (fixed(1), fixed(1), out("hidden")), "zeros")
_PLACES = (
    ParameterSpec(_E + "position_embeddings", (fixed(1), out("position"), out("hidden"))),
    *on(
        "patch",
        (
            ParameterSpec(_PATCHES + ".weight", (out("hidden"), reads("channel"), reads("patch"), reads("patch"))),
            ParameterSpec(_PATCHES + ".bias", (out("hidden"),), "zeros"),
        ),
    ),
)


# The names under which `save_pretrained` writes the rows of a layer.
_ON_DISK = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}


_VIT_LAYER = (
    *linear(_L + "attention.q_proj", "hidden", "query"),
    *linear(_L + "attention.k_proj", "hidden", "key_value"),
    *linear(_L + "attention.v_proj", "hidden", "key_value"),
    *linear(_L + "attention.o_proj", "query", "hidden", writes_residual=True),
    *layer_norm(_L + "layernorm_before"),
    *layer_norm(_L + "layernorm_after"),
    *linear(_L + "mlp.fc1", "hidden", "ffn"),
    *linear(_L + "mlp.fc2", "ffn", "hidden", writes_residual=True),
)


def _on_disk(name: str) -> str:
    module, _, kind = name.removeprefix(_L).rpartition(".")
    return f"vit.encoder.layer.{{layer}}.{_ON_DISK[module]}.{kind}"


_HEADS = {
    "classes": Head(
        "ForImageClassification",
        on("sample", linear("classifier", "hidden", "class")),
        {"num_labels": "num_classes"},
    ),
    # As in SimMIM (2111.09886): of every patch's state its pixels, by a convolution of one pixel.
    "pixels": Head(
        "ForMaskedImageModeling",
        on(
            "patch",
            (
                ParameterSpec("decoder.0.weight", (out("pixel"), reads("hidden"), fixed(1), fixed(1))),
                ParameterSpec("decoder.0.bias", (out("pixel"),), "zeros"),
            ),
        ),
        {"encoder_stride": "patch_size"},
        before=(_CLASS_TOKEN, _MASK_TOKEN, *_PLACES),
        output="reconstruction",
    ),
}


_IN_MEMORY = Family(
    name="vit",
    before=(_CLASS_TOKEN, *_PLACES),
    layer=_VIT_LAYER,
    after=layer_norm("vit.layernorm", feeds_head=True),
    embeddings=(_CLASS_TOKEN.name, _MASK_TOKEN.name, *(row.name for row in _PLACES)),
    head="",
    optional=on("sample", linear("vit.pooler.dense", "hidden", "hidden")),
    base="vit.",
    norm="layer",
    heads_fill_hidden=True,
    rotary=False,
    objective="",
    fields={
        "num_layers": ("num_hidden_layers", 12),
        "hidden_size": ("hidden_size", 768),
        "num_heads": ("num_attention_heads", 12),
        "ffn_size": ("intermediate_size", 3072),
        "norm_eps": ("layer_norm_eps", 1e-12),
        "image_size": ("image_size", 224),
        "patch_size": ("patch_size", 16),
        "num_channels": ("num_channels", 3),
    },
    constants={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    heads=_HEADS,
)


VIT = replace(
    _IN_MEMORY,
    on_disk=replace(_IN_MEMORY, layer=tuple(replace(row, name=_on_disk(row.name)) for row in _VIT_LAYER)),
    stored_as={row.name: (_on_disk(row.name),) for row in _VIT_LAYER},
)
