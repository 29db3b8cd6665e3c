"""The parameter tables of the networks in this folder. No torch: plans read them.

All three are residual, so that every growth operator works on them as it does on transformers. The residual stream has
`hidden_size` units (of a convolutional network: channels), and each layer has `ffn_size` units inside.
"""

from __future__ import annotations

from raystage.models.table import Axis, Family, Head, ParameterSpec, fixed, out, reads
from raystage.models.tables.rows import linear, on

_L = "layers.{layer}."
_KERNEL = 3


def _gain(name: str, unit: str = "hidden", feeds_head: bool = False) -> ParameterSpec:
    return ParameterSpec(name, (Axis("gain", (unit,)),), "ones", feeds_head=feeds_head)


def _batch_norm(name: str, unit: str, feeds_head: bool = False) -> tuple[ParameterSpec, ...]:
    """Gains, shifts, and the running mean and variance of every channel."""
    statistic = (Axis("statistic", (unit,)),)
    return (
        _gain(f"{name}.weight", unit, feeds_head),
        ParameterSpec(f"{name}.bias", (Axis("shift", (unit,)),), "zeros", feeds_head=feeds_head),
        ParameterSpec(f"{name}.running_mean", statistic, "zeros", is_buffer=True),
        ParameterSpec(f"{name}.running_var", statistic, "ones", is_buffer=True),
    )


def _convolution(name: str, source: str, target: str, writes_residual: bool = False) -> ParameterSpec:
    """Without a bias: a batch norm follows, or the residual stream, which the next batch norm shifts."""
    axes = (out(target), reads(source), fixed(_KERNEL), fixed(_KERNEL))
    return ParameterSpec(f"{name}.weight", axes, writes_residual=writes_residual)


_CLASSIFIER = Head("", on("sample", linear("classifier", "hidden", "class")))
_IMAGES = {
    "image_size": ("image_size", 32),
    "patch_size": ("patch_size", 1),
    "num_channels": ("num_channels", 3),
}
_SIZES = {
    "num_layers": ("num_layers", 4),
    "hidden_size": ("hidden_size", 32),
    "ffn_size": ("ffn_size", 32),
    "norm_eps": ("norm_eps", 1e-5),
}


CNN = Family(
    name="cnn",
    before=(_convolution("stem", "channel", "hidden"),),
    layer=(
        *_batch_norm(_L + "norm1", "hidden"),
        _convolution(_L + "conv1", "hidden", "ffn"),
        *_batch_norm(_L + "norm2", "ffn"),
        _convolution(_L + "conv2", "ffn", "hidden", writes_residual=True),
    ),
    after=_batch_norm("norm", "hidden", feeds_head=True),
    embeddings=(),
    head="",
    norm="batch",
    rotary=False,
    inner_factor=1,
    objective="",
    fields={**_SIZES, **_IMAGES},
    module="raystage.models.networks.cnn",
    heads={
        "classes": _CLASSIFIER,
        "pixels": Head(
            "",
            (
                ParameterSpec("decoder.weight", (out("pixel"), reads("hidden"), fixed(1), fixed(1))),
                ParameterSpec("decoder.bias", (out("pixel"),), "zeros"),
            ),
            output="reconstruction",
        ),
    },
)


MLP = Family(
    name="mlp",
    before=linear("stem", "pixel", "hidden"),
    layer=(
        _gain(_L + "norm.weight"),
        *linear(_L + "up", "hidden", "ffn"),
        *linear(_L + "down", "ffn", "hidden", writes_residual=True),
    ),
    after=(_gain("norm.weight", feeds_head=True),),
    embeddings=(),
    head="",
    rotary=False,
    objective="",
    fields={**_SIZES, **_IMAGES},
    module="raystage.models.networks.mlp",
    heads={
        "classes": _CLASSIFIER,
        "pixels": Head("", linear("decoder", "hidden", "pixel"), output="reconstruction"),
    },
)


_GATES = ("ffn",) * 4


LSTM = Family(
    name="lstm",
    before=(ParameterSpec("embed.weight", (out("vocab"), out("hidden"))),),
    layer=(
        _gain(_L + "norm.weight"),
        ParameterSpec(_L + "lstm.weight_ih", (out(*_GATES), reads("hidden"))),
        ParameterSpec(_L + "lstm.weight_hh", (out(*_GATES), reads("ffn"))),
        ParameterSpec(_L + "lstm.bias", (out(*_GATES),), "zeros"),
        ParameterSpec(_L + "proj.weight", (out("hidden"), reads("ffn")), writes_residual=True),
    ),
    after=(_gain("norm.weight", feeds_head=True), ParameterSpec("head.weight", (out("vocab"), reads("hidden")))),
    embeddings=("embed.weight",),
    head="head.weight",
    rotary=False,
    inner_factor=1,
    fields={
        **_SIZES,
        "vocab_size": ("vocab_size", 256),
        "context_length": ("context_length", 128),
        "tied_embeddings": ("tied_embeddings", False),
    },
    module="raystage.models.networks.lstm",
    heads={"classes": _CLASSIFIER},
)


NETWORKS = (CNN, LSTM, MLP)
