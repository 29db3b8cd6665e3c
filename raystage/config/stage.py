"""The sections of a stage: its data, model, training, growth and frozen parts. Every key is optional in a file.

A schedule holds `data`, `model` and `training` as defaults for all stages; a stage overrides single keys of them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from raystage.config.conditions import Accept, OnReject, Until
from raystage.config.objective import ObjectiveEntry, standard_objective
from raystage.config.order import Curriculum, Window
from raystage.config.positions import RopeScaling, RopeTheta
from raystage.config.section import Section
from raystage.config.stages.adapter import Adapter
from raystage.config.stages.averaging import Average
from raystage.config.stages.deliver import Deliver, as_deliver
from raystage.config.stages.ensemble import EnsembleSection
from raystage.config.stages.freeze import Freeze, Thaw
from raystage.config.training import Training, nothing_of_its_own
from raystage.config.types import (
    Classes,
    Context,
    Count,
    CountOrZero,
    DocumentBytes,
    Duration,
    EndToken,
    Experts,
    Flag,
    Heads,
    Layers,
    ModelFamily,
    Name,
    Paths,
    Pixels,
    Positive,
    Reference,
    Seed,
    Share,
    SomeClasses,
    Text,
    Units,
    Weight,
    Words,
)
from raystage.data.tokenizer_names import BYTE_TOKENIZER
from raystage.growth.depth import GrowthOptions
from raystage.growth.operators import OPTIMIZER_STATE_POLICIES, parse_operator
from raystage.sources.table import SOURCES, TOKEN_FORMATS

MOST_SOURCES = 200


class TextSource(Section):
    """Where text comes from, and which part of it is held out."""

    source: Literal[tuple(SOURCES)] = "python-stdlib"
    """Where documents come from. `python-stdlib` is the source code of Python's standard library: nothing to download.
    The others read `path`: `text` plain text, `jsonl` JSON lines, `parquet` Parquet files, `huggingface` data sets,
    `tokens` text that another program tokenized, `images` image files, `arrays` images that packages ship, or those in
    NumPy's files."""
    path: Paths = ()
    """Files or folders to read. A relative path starts at the working directory or at the schedule's folder. For
    sources with rows also globs, and places such as `s3://bucket/prefix`."""
    files: Text | None = None
    """A pattern of the names of the files to read, such as `*.txt`; all files unless given."""
    document_separator: Text | None = None
    """A text at which files are split into documents. Without it, and without `document_bytes`, a file is one
    document."""
    document_bytes: DocumentBytes | None = None
    """The length in bytes at which files are split into documents, each at the end of a line."""
    field: Text | None = None
    """The field of a row that is the document, for `jsonl`, `parquet` and `huggingface`; `text` unless given, and
    `messages` for `objective: instruct`. Dots lead into nested fields: `meta.body`."""
    subset: Text | None = None
    """The subset (or configuration) of a data set on the Hub, for `huggingface`."""
    split: Text | None = None
    """The split of a data set that is read, for `huggingface`; `train` unless given."""
    validation_split: Text | None = None
    """The split of the same data set that is held out, in place of `validation_fraction`."""
    label: Text | None = None
    """The field of a row that is the class of a sample, for `jsonl`, `parquet` and `huggingface`: whole numbers or
    text. The folders of `images` are its classes, and `arrays` has `labels` beside its `images`."""
    image: Text | None = None
    """The column with images, in place of text, for `parquet` and `huggingface`."""
    classes: Classes = ()
    """The names of the classes in order, where they should not follow from the labels; whole numbers count from 0."""
    only_classes: SomeClasses = ()
    """The classes whose samples are read, by name; all unless given. The others stay classes of the model, and what is
    held out of each class is as without it."""
    resize: Pixels = None
    """The height and width of images in pixels: the middle of each is scaled. Without it all must have one size."""
    channels: Literal[1, 3] | None = None
    """The colours of images: 1 for grey, 3 for red, green and blue. Without it all must have one number."""
    format: Literal[TOKEN_FORMATS] | None = None
    """The format of files of tokens, for `tokens`; recognised unless given."""
    validation_fraction: Share = 0.05
    """The share of the text that is held out for evaluation, as whole documents."""
    validation_path: Paths = ()
    """Separate text to hold out, in place of `validation_fraction`: files or folders."""

    @model_validator(mode="after")
    def _holds_out_in_one_way(self) -> Self:
        given = [key for key in ("validation_path", "validation_split") if getattr(self, key)]
        if "validation_fraction" in self.model_fields_set:
            given = ["validation_fraction", *given]
        if len(given) > 1:
            raise ValueError(f"found both {' and '.join(given[:2])}; expected one of them")
        if self.image and self.field:
            raise ValueError("found both image and field; expected one of them: what a sample is")
        return self


class MixtureEntry(TextSource):
    """One source of a mixture. A stage's entry changes single keys of the file's entry of the same name."""

    name: Annotated[Name, Field(examples=["web"])]
    """The name of the source, unique in the mixture: `plan`, the report and W&B show it."""
    weight: Weight | None = None
    """Its share of the text that is read; all shares add up to 1. `rest` is what the others leave, `0` a source that is
    evaluated and not trained on."""
    max_repeats: Positive | None = None
    """How often its text may be read in a run before `raystage plan` warns; 4 unless given (2305.16264)."""


class Data(TextSource):
    """The text, and how it is read."""

    mixture: Annotated[tuple[MixtureEntry, ...], Field(min_length=1, max_length=MOST_SOURCES)] | None = None
    """Several sources with weights, in place of one: `[{name: web, source: text, path: web, weight: 0.7}, ...]`. The
    tokenizer is the same for all of them."""

    window: Window = Window()
    """What the windows of text keep apart."""
    curriculum: Annotated[Curriculum | None, Field(examples=["{by: length, start: 0.2}"])] = None
    """The text in the order of a score, from easy to hard; shuffled unless given. Baselines read it shuffled."""

    tokenizer: Text = BYTE_TOKENIZER
    """`bytes`, a folder with a tokenizer, or a name on the Hugging Face Hub: `org/model` or `org/model@revision`."""
    end_token: EndToken | None = None
    """The token that ends a document; the tokenizer's own end-of-text token unless given. For `source: tokens` also its
    id."""
    chat_template: Text | None = None
    """For `objective: instruct`: a file with a Jinja template that makes a text of a conversation; the tokenizer's own
    unless given."""
    encoding_errors: Literal["strict", "replace"] = "strict"
    """What happens to bytes that are not UTF-8: `strict` refuses the file, `replace` puts U+FFFD in their place."""

    @model_validator(mode="after")
    def _has_one_text_or_several(self) -> Self:
        if self.mixture is None:
            return self
        beside = [name for name in TextSource.model_fields if name in self.model_fields_set]
        if beside:
            raise ValueError(f"found mixture beside {beside[0]}; expected {beside[0]} in the entries of the mixture")
        names = [entry.name for entry in self.mixture]
        again = next((name for index, name in enumerate(names) if name in names[:index]), None)
        if again is not None:
            raise ValueError(f"found the source {again!r} twice in the mixture; expected a name of its own for each")
        return self

    def overlaid(self, other: Self) -> Self:
        """This section with everything that `other` sets. A mixture takes the place of one text, and one text that of a
        mixture; entries of a name that this mixture has too are laid over its own."""
        found, given = super().overlaid(other), other.model_fields_set
        if other.mixture is not None:
            known = {entry.name: entry for entry in self.mixture or ()}
            entries = (known[one.name].overlaid(one) if one.name in known else one for one in other.mixture)
            single = {name: field.get_default() for name, field in TextSource.model_fields.items()}
            return found.model_copy(update={**single, "mixture": tuple(entries)})
        return found.model_copy(update={"mixture": None}) if given.intersection(TextSource.model_fields) else found


class Model(Section):
    """The shape of the model. What is not given follows from the rest, or from `init`."""

    family: ModelFamily = "llama"
    """The model family, as transformers names it; `cnn`, `lstm`, `mlp`, residual networks of raystage's own; `module`,
    a `torch.nn.Module` of yours; or `transformers`, any other architecture of transformers."""
    build: Annotated[Reference | None, Field(examples=["my/net.py:make"])] = None
    """For `family: module`: the function that returns the module, `module:function` or `file.py:function`. It is called
    with `options`, and with those of `vocab_size`, `context_length`, `num_classes`, `image_size` and `num_channels`
    that it has as arguments."""
    options: dict[str, Any] = Field(default_factory=dict)
    """For `family: module`: keyword arguments of the function. A stage changes single ones, such as the depth."""
    config: Text | None = None
    """For `family: transformers`: a `config.json`, a folder with one, or a name on the Hugging Face Hub. `num_layers`
    changes its depth."""
    layer_list: Text | None = None
    """For `module` and `transformers`: the name of the list of layers, such as `encoder.blocks`; the one with most
    parameters unless given."""
    widths: dict[Literal["hidden_size", "ffn_size"], Text] = Field(default_factory=dict)
    """For `module`: which options are widths that may grow, `{hidden_size: width, ffn_size: inner}`: of the residual
    stream, and of units inside of layers."""
    writes_residual: tuple[Text, ...] = ()
    """For `module` and `transformers`: patterns of the parameters that write to the residual stream, such as
    `*.fc2.*`. Operators that add silent layers need them."""
    num_layers: Layers | None = None
    """The number of layers."""
    hidden_size: Units | None = None
    """The width of the residual stream; for `family: cnn` its channels."""
    num_heads: Heads | None = None
    """The number of attention heads."""
    num_kv_heads: Heads | None = None
    """The number of key and value heads, a divisor of `num_heads`; as many as `num_heads` unless given."""
    head_size: Units | None = None
    """The width of one head; `hidden_size / num_heads` unless given."""
    ffn_size: Units | None = None
    """The width inside of a layer: of the feed-forward part (four times `hidden_size` unless given), of the channels
    between the two convolutions of a `cnn` or the cells of an `lstm` (as many as `hidden_size` unless given)."""
    vocab_size: Words | None = None
    """The number of token ids; as many as the tokenizer needs unless given, where its files say so."""
    context_length: Context | None = None
    """The length of a sequence in tokens. Every context length of a run divides the longest one."""
    tied_embeddings: Flag | None = None
    """Whether the input and output embeddings are one parameter; as transformers does for the family unless given."""
    norm_eps: Positive | None = None
    """The epsilon of the norms; as transformers has it for the family unless given. A growth may change it."""
    patch_size: Units | None = None
    """For `family: vit`: the height and width of a patch in pixels; each is one position. For `family: cnn`: the stride
    of its first convolution, 1 unless given. The size of the images follows from the data."""
    sliding_window: Units | None = None
    """Of `gemma2` and `gemma3_text`: how many tokens one attends to in layers with a window, itself and those before;
    of `modernbert` half as many on either side. As transformers has it for the family unless given."""
    query_pre_attn_scalar: Units | None = None
    """Of `gemma2` and `gemma3_text`: attention scores are divided by its square root; `head_size` unless given."""
    num_experts: Experts | None = None
    """The number of experts in each layer; of `mixtral` and `qwen3_moe`."""
    experts_per_token: Experts | None = None
    """The number of experts that compute a token; 2 unless given."""
    rope_theta: RopeTheta | None = None
    """The base of rotary positions. That of the stage before unless the stage gives it; in the first stage that of
    `init`, else 10,000 (`gemma3_text`: 1,000,000; `modernbert`: 160,000). The file's value is for the first stage."""
    local_rope_theta: RopeTheta | None = None
    """Of `gemma3_text` and `modernbert`: the base of rotary positions in layers with a window. As `rope_theta`, else
    10,000."""
    rope_scaling: Annotated[RopeScaling | None, Field(examples=["{kind: yarn, factor: 4}"])] = None
    """How rotary positions are scaled. As in the stage before unless the stage gives it; in the first stage as in
    `init`, else not at all. The file's value is for the first stage."""


class Rewarm(Duration):
    """A learning rate of its own for new parameters after a growth.

    It rises in a straight line from 0 to `factor` times the rate of the other parameters, then falls to that rate. The
    length is that of the rise; the fall takes as long.
    """

    factor: Positive = 1.3
    """The highest rate of new parameters, as a multiple of the rate of the others."""


class Require(Section):
    """Limits on what a growth does to the model, by its certificate. Outside of them the run stops."""

    loss_increase_below: Positive | None = None
    """The increase of the held-out loss, in nats per token."""
    max_logit_difference_below: Positive | None = None
    """The largest absolute difference of a logit before and after."""
    gradient_error_below: Positive | None = None
    """The largest relative difference between the predicted gradient and the real one."""


NOTHING_REQUIRED = Require()
_OPERATOR_FORMS = WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object"}]})


class Grow(Section):
    """How the model of a stage comes from the model of the stage before it."""

    operator: Annotated[str, BeforeValidator(parse_operator), _OPERATOR_FORMS, Field(examples=["stack"])]
    """The growth operator, or one for each part that grows: `{num_layers: stack, width: zero_pad}`."""
    optimizer_state: Literal[OPTIMIZER_STATE_POLICIES] = "grow"
    """What happens to the optimizer's moments: `grow` maps them like the weights, `reset` sets them to zero, `keep`
    keeps them where no shape changed."""
    rewarm: Rewarm | None = None
    """A learning rate of its own for new parameters after the growth."""
    layers: Annotated[tuple[CountOrZero, ...], Field(min_length=1)] | None = None
    """The source layer of every layer, from 0; for operators that take a list."""
    block: Count | None = None
    """The number of layers that are repeated together; for `middle`."""
    grow_tokens: Count | None = None
    """The tokens over which the mask opens; for `masked`."""
    fit_steps: Count | None = None
    """The steps for which the growth is fitted; for `learned`, 100 unless given."""
    require: Require = NOTHING_REQUIRED
    """Limits on what the growth does to the model."""

    @property
    def options(self) -> GrowthOptions:
        return GrowthOptions(self.layers, self.block, self.grow_tokens, self.fit_steps)


DeliverEntry = Annotated[
    Deliver | None, BeforeValidator(as_deliver, json_schema_input_type=Flag | Deliver | None), Field(examples=["true"])
]


class Stage(Section):
    """One stage: what it overrides of the file's `data`, `model` and `training`, and how it starts and ends."""

    stands_alone: ClassVar[bool] = True

    name: Annotated[Name, Field(examples=["small"])]
    """The stage's name, unique in the file."""
    until: Annotated[Until, Field(examples=["{tokens: 400K}"])]
    """When the stage ends."""
    accept: Accept | None = None
    """What the finished stage must show; everything is accepted unless given."""
    on_reject: OnReject | None = None
    """What happens when the stage is not accepted; the run stops unless given."""
    seed: Seed | None = None
    """The seed of the stage; the file's unless given."""
    grow: Annotated[Grow | None, Field(examples=["{operator: stack}"])] = None
    """How the model grows from that of the stage before. Without it the shape has to be that of the stage before."""
    freeze: Freeze | None = None
    """What is not trained."""
    adapter: Annotated[Adapter | None, Field(examples=["{lora: {rank: 16}}"])] = None
    """What is trained in place of the model's own parameters."""
    average: Annotated[Average | None, Field(examples=["{last: 4, every: 1M}"])] = None
    """The model that the stage ends with, as an average of its last checkpoints."""
    deliver: DeliverEntry = None
    """A finished model of the stage's size beside the run: decayed, and exported. `true`, or a section."""
    ensemble: Annotated[EnsembleSection | None, Field(examples=["{members: 4}"])] = None
    """Several members of the stage, and how they answer together."""
    thaw: Annotated[Thaw | None, Field(examples=["{from: top, every: 200K}"])] = None
    """How frozen parameters begin to train, layer by layer. Without `freeze` all of the model is frozen at first,
    except the last norm and the head."""
    data: Data = Data()
    """The text, over the file's."""
    model: Model = Model()
    """The shape of the model, over the file's."""
    objective: ObjectiveEntry = Field(default_factory=standard_objective)
    """What is learned, in place of the file's."""
    training: Training = Field(default_factory=nothing_of_its_own)
    """The training, over the file's."""
