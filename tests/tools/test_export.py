"""`raystage export`: checkpoints as folders that plain transformers loads, equal to the last bit, tokenizers too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from chats import TEMPLATE, save_chat_words
from exports import byte_shape, exported, invoke, load, logits, make_checkpoint, network_of
from factories import save_words
from growths import tiny
from raystage.data.tokenizer_names import tokenizer_fingerprint
from raystage.data.tokenizers import ByteTokenizer, LabelledTexts, PretrainedTokenizer
from raystage.models import build as model
from raystage.models.families import TRANSFORMERS
from raystage.sources.corpus import Sample
from raystage.storage.shards.writing import shard_name

LEARNS_NEXT = [name for name, family in TRANSFORMERS.items() if family.objective == "next token"]
TEXTS = ["two\nlines", "  ¡ñandú! \x00\x7f\x80ÿĀ 漢字 🙂", "an <|endoftext|> in the text", ""]


@pytest.mark.parametrize("size", ["5GB", "4KB"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", LEARNS_NEXT)
def test_the_folder_is_the_model_to_the_bit(tmp_path: Path, family: str, tied: bool, size: str) -> None:
    shape = byte_shape(family, tied_embeddings=tied, norm_eps=1e-4)
    made = exported(make_checkpoint(tmp_path / "saved", shape), tmp_path / "out", "--max-shard-size", size)
    network = load(tmp_path / "out")
    assert torch.equal(logits(network, shape), logits(network_of(shape), shape))
    assert type(network) is model.model_class(shape)
    assert network.dtype == torch.float32
    assert made["num_params"] == sum(one.numel() for one in network.parameters())
    assert (len([name for name in made["files"] if name.endswith(".safetensors")]) > 1) == (size == "4KB")
    assert ("model.safetensors.index.json" in made["files"]) == (size == "4KB")


@pytest.mark.parametrize("family", LEARNS_NEXT)
def test_it_writes_what_save_pretrained_writes(tmp_path: Path, family: str) -> None:
    """The same tensors under the same names, and the same config but for what generation needs."""
    shape = byte_shape(family)
    exported(make_checkpoint(tmp_path / "saved", shape), tmp_path / "out")
    network_of(shape).save_pretrained(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("out", "theirs"))
    assert ours == theirs | {"eos_token_id": 256, "use_cache": True}
    ours, theirs = (transformers.modeling_utils.load_state_dict(tmp_path / name / "model.safetensors")
                    for name in ("out", "theirs"))  # fmt: skip
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_types_are_rounded(tmp_path: Path, dtype: torch.dtype) -> None:
    shape, name = byte_shape("mixtral"), str(dtype).removeprefix("torch.")
    exported(make_checkpoint(tmp_path / "saved", shape), tmp_path / "out", "--dtype", name)
    network, expected = load(tmp_path / "out"), network_of(shape).to(dtype)
    assert network.dtype == dtype
    found = dict(network.named_parameters())
    assert all(torch.equal(found[name], values) for name, values in expected.named_parameters())


def test_the_byte_tokenizer_goes_along(tmp_path: Path) -> None:
    exported(make_checkpoint(tmp_path / "saved", byte_shape("llama")), tmp_path / "out")
    theirs, ours = PretrainedTokenizer(str(tmp_path / "out")), ByteTokenizer()
    assert theirs.size == ours.size
    for text in [*TEXTS, "".join(map(chr, range(0x500)))]:
        assert theirs.encode(text.encode()).tolist() == ours.encode(text.encode()).tolist(), text
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (loaded.eos_token_id, loaded.model_max_length) == (256, byte_shape("llama").context_length)
    assert [loaded.decode(loaded(text)["input_ids"]) for text in TEXTS] == TEXTS
    assert loaded.decode([65, 256, 66], skip_special_tokens=True) == "AB"


def test_generation_ends_with_a_document(tmp_path: Path) -> None:
    exported(make_checkpoint(tmp_path / "saved", byte_shape("llama")), tmp_path / "out")
    network = load(tmp_path / "out")
    assert network.generation_config.eos_token_id == 256
    with torch.no_grad():
        network.lm_head.weight.zero_()
        network.lm_head.weight[256] = 100 * network.model(torch.tensor([[65]])).last_hidden_state[0, -1]
    made = network.generate(torch.tensor([[65]]), max_new_tokens=4, do_sample=False, pad_token_id=0)
    assert made.tolist() == [[65, 256]]


def test_a_folders_tokenizer_goes_along_as_it_is(tmp_path: Path) -> None:
    exported(make_checkpoint(tmp_path / "saved", byte_shape("llama")), tmp_path / "tokens")
    made = exported(
        make_checkpoint(tmp_path / "second", byte_shape("llama"), str(tmp_path / "tokens")), tmp_path / "out"
    )
    assert made["tokenizer"] == str(tmp_path / "tokens")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "tokens" / name).read_bytes()
    assert tokenizer_fingerprint(str(tmp_path / "out")) == tokenizer_fingerprint(str(tmp_path / "tokens"))


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
def test_a_classifiers_tokenizer_makes_of_a_text_what_it_was_trained_on(
    tmp_path: Path, tokenizer: str, begins: bool
) -> None:
    """With the token that ends a text, by which a llama decides, and the one that begins it, also where it is cut."""
    ours, name = ByteTokenizer(), "bytes"
    if tokenizer == "words":
        name = str(save_words(tmp_path / "words", "two", "lines", "[CLS]"))
        if begins:
            words = transformers.AutoTokenizer.from_pretrained(name)
            words.add_special_tokens({"cls_token": "[CLS]"})
            words.save_pretrained(name)
        ours = PretrainedTokenizer(name)
        assert (ours.start is not None) == begins
    shape = byte_shape("llama", head="classes", num_classes=3)
    exported(make_checkpoint(tmp_path / "saved", shape, name), tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("two lines", "lines lines two", "an </s> or <|endoftext|> in it"):
        (expected, _) = LabelledTexts(ours).encode(Sample(text.encode()))
        assert theirs(text)["input_ids"] == expected.tolist(), text
        cut = theirs("two " * 99, truncation=True)["input_ids"]
        assert (len(cut), cut[-1]) == (shape.context_length, expected[-1])


def test_generation_ends_with_the_token_that_ended_documents(tmp_path: Path) -> None:
    tokens = str(save_words(tmp_path / "tokens", "document", "[SEP]", end=None))
    saved = make_checkpoint(tmp_path / "saved", byte_shape("llama"), tokens, end_token="[SEP]")
    exported(saved, tmp_path / "out")
    assert load(tmp_path / "out").generation_config.eos_token_id == 3


def test_a_tokenizer_s_size_is_its_largest_id(tmp_path: Path) -> None:
    tokens = save_words(tmp_path / "tokens", "document", end_id=999)
    done = invoke(make_checkpoint(tmp_path / "saved", byte_shape("llama"), str(tokens)), tmp_path / "out")
    assert done.exit_code == 2
    assert "with ids up to 999; expected them below the model's vocab_size" in done.output


@pytest.mark.parametrize(("tokenizer", "options"), [(None, ()), ("bytes", ("--tokenizer=none",))])
def test_without_a_tokenizer(tmp_path: Path, tokenizer: str | None, options: tuple[str, ...]) -> None:
    made = exported(make_checkpoint(tmp_path / "saved", byte_shape("llama"), tokenizer), tmp_path / "out", *options)
    assert made["tokenizer"] is None
    assert made["files"] == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "out/config.json").read_text()).get("eos_token_id") is None


BAD = {
    "no such folder": (("nowhere", "out"), "CHECKPOINT: no such folder"),
    "a Hugging Face folder": (("hf", "out"), "CHECKPOINT: found a Hugging Face folder; expected a raystage checkpoint"),
    "a target in use": (("saved", "saved"), "TARGET: exists and is not empty"),
    "no size": (("saved", "out", "--max-shard-size=large"), "--max-shard-size: found 'large'; expected a size"),
    "nothing in a file": (("saved", "out", "--max-shard-size=0"), "--max-shard-size: found '0'; expected a size"),
    "no tokenizer there": (("saved", "out", "--tokenizer=saved"), "tokenizer: 'saved' cannot be loaded"),
    "too large a tokenizer": (("small", "out", "--tokenizer=bytes"), "found 'bytes' with ids up to 256; expected"),
    "too large for the type": (("huge", "out", "--dtype=float16"), "--dtype: found "),
    "another tokenizer": (("moved", "out"), "found other files in "),
    "damaged": (("damaged", "out"), "does not match its checksum"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = byte_shape("llama")
    make_checkpoint(tmp_path / "saved", shape)
    exported("saved", "hf")
    make_checkpoint(tmp_path / "small", tiny("llama"))
    make_checkpoint(tmp_path / "huge", shape, scale=1e6)
    make_checkpoint(tmp_path / "moved", shape, str(tmp_path / "hf"))
    config = tmp_path / "hf/tokenizer_config.json"
    config.write_text(config.read_text() + "\n")
    shard = make_checkpoint(tmp_path / "damaged", shape) / shard_name(1, 2)
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    arguments, message = BAD[case]
    done = invoke(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_own", [True, False])
def test_the_chat_template_of_the_training_goes_along(is_own: bool, tmp_path: Path) -> None:
    """The tokenizer's own, or the one that the schedule named in its place."""
    words = save_chat_words(tmp_path / "words")
    config = words / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": "older"}))
    template = TEMPLATE if is_own else f"{TEMPLATE}w1"
    saved = make_checkpoint(tmp_path / "saved", byte_shape("llama"), str(words), chat_template=template)
    exported(saved, tmp_path / "out")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template == template
    exported(saved, tmp_path / "named", "--tokenizer", words)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "named").chat_template == TEMPLATE
