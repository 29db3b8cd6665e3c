"""What a plan knows of a tokenizer from its files, and what the tokenizer then does with text."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from factories import make_schedule, save_words, write_documents
from raystage.data.hf_tokenizer import load_tokenizer
from raystage.data.tokenizer_files import TokenizerFacts, read_tokenizer
from raystage.data.tokenizers import ByteTokenizer, PretrainedTokenizer
from raystage.data.tokens import open_streams
from raystage.errors import InputError
from raystage.planning.build import make_plan
from raystage.plans.plan import Plan
from raystage.sources import text_files

TEXT = "one two three\nvier fünf sechs\n" * 20


def bytewise(folder: Path) -> Path:
    """A byte-level BPE as GPT-2's, with control tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|eos|>", "<|im_start|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|eos|>", additional_special_tokens=["<|im_start|>"]
    )
    fast.save_pretrained(folder)
    return folder


def unigram(folder: Path) -> Path:
    model = models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0), ("b", -2.0)], unk_id=0)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return folder


def with_gap(folder: Path) -> Path:
    return save_words(folder, "document", end_id=999)


def with_new_pad(folder: Path) -> Path:
    """A special token that no file gives an id."""
    save_words(folder, "document")
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<new>"}))
    return folder


def bert(folder: Path) -> Path:
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "document", "a"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return folder


def alone(folder: Path) -> Path:
    """A tokenizer.json as `tokenizers` saves it, without the configuration that transformers adds."""
    bytewise(folder)
    (folder / "tokenizer_config.json").unlink()
    assert [file.name for file in folder.iterdir()] == ["tokenizer.json"]
    assert read_tokenizer(folder).has_end is False
    return folder


@pytest.mark.parametrize("make", [bytewise, unigram, with_gap, with_new_pad, bert, save_words, alone])
def test_sizes_are_those_that_the_loaded_tokenizer_has(make, tmp_path: Path) -> None:
    folder = make(tmp_path / "tokenizer")
    known = read_tokenizer(folder)
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
    assert known.size in (None, 1 + max(loaded.get_vocab().values()))
    assert (known.size is None) == (make is with_new_pad)
    assert known.has_end in (None, loaded.eos_token is not None)
    assert {*loaded.all_special_tokens} <= {*known.controls} or make is bert
    if known.has_end is False:
        with pytest.raises(InputError, match="no end-of-text token"):
            PretrainedTokenizer(str(folder))
    else:
        assert PretrainedTokenizer(str(folder)).size == 1 + max(loaded.get_vocab().values())


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model": 3}', '{"model": {"vocab": [1, [], [2]]}}', '"a"'])
def test_damaged_files_say_nothing(content: str, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json"):
        (tmp_path / name).write_text(content)
    assert read_tokenizer(tmp_path).size is None
    assert read_tokenizer(tmp_path / "nowhere") == TokenizerFacts()


ODD_IDS = ["-1", "1e3", "true", '"3"', "null", "[1]", "2147483648", "9" * 4000]


@pytest.mark.parametrize("odd", ODD_IDS)
def test_what_is_no_id_says_nothing(odd: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(f'{{"model": {{"vocab": {{"a": 0, "b": {odd}}}}}}}')
    assert read_tokenizer(tmp_path).size in (None, 2)  # true is 1
    decoder = {"added_tokens_decoder": {"9" * 5000: {"content": "<a>"}, "²": "<b>", "": 3, "5": {"content": [1]}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(decoder))
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": {}}, 3]}')
    assert read_tokenizer(tmp_path).size in (None, 1)


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to("/dev/zero")
    assert read_tokenizer(tmp_path) == TokenizerFacts()


def test_half_characters_are_no_matter(tmp_path: Path) -> None:
    tokenizer = with_gap(tmp_path / "tokenizer")
    file = tokenizer / "special_tokens_map.json"
    file.write_text('{"pad_token": "\\ud800"}')
    plan = plan_of(tmp_path, tokenizer, 1024)
    assert not plan.staged.stages[0].data.has_controls


def plan_of(tmp_path: Path, tokenizer: Path, vocab_size: int | None = None, **data: object) -> Plan:
    (tmp_path / "texts").mkdir(exist_ok=True)
    model = {} if vocab_size is None else {"vocab_size": vocab_size}
    return make_plan(make_schedule(tmp_path / "texts", data={"tokenizer": str(tokenizer), **data}, model=model))


def test_the_vocabulary_follows_from_the_ids(tmp_path: Path) -> None:
    """They have a gap: 3 tokens, of which one is 999."""
    tokenizer = with_gap(tmp_path / "tokenizer")
    assert plan_of(tmp_path, tokenizer).staged.stages[0].shape.vocab_size == 1000
    assert plan_of(tmp_path, tokenizer, 1024).staged.stages[0].shape.vocab_size == 1024
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, tokenizer, 257)
    assert str(refused.value) == (
        f"model.vocab_size: found 257; expected at least 1000: the ids of the tokenizer {str(tokenizer)!r} go up to 999"
    )


def test_of_a_hub_name_the_cache_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"found 'my/words', no folder here, and the hub did not give it"):
        plan_of(tmp_path, Path("my/words"))
    repository = tmp_path / "hub" / "models--my--words"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    with_gap(repository / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "texts" / "0.txt").write_text("a control token </s> in text")
    (stage, *_) = plan_of(tmp_path, Path("my/words"), validation_fraction=0.5).staged.stages
    assert stage.shape.vocab_size == 1000
    assert not stage.data.has_controls
    written = plan_of(tmp_path, Path("my/words"), 1000, validation_fraction=0.5)
    assert written.staged.stages[0].key == stage.key


def test_a_written_vocabulary_has_the_key_of_one_that_follows(tmp_path: Path) -> None:
    tokenizer = with_gap(tmp_path / "tokenizer")
    one, other = plan_of(tmp_path, tokenizer), plan_of(tmp_path, tokenizer, 1000)
    assert [stage.key for stage in one.staged.stages] == [stage.key for stage in other.staged.stages]


def test_what_the_files_do_not_say_has_to_be_written(tmp_path: Path) -> None:
    tokenizer = with_new_pad(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"^model.vocab_size: missing; expected one more than the largest id"):
        plan_of(tmp_path, tokenizer)
    data = plan_of(tmp_path, tokenizer, 4).staged.stages[0].data
    with pytest.raises(InputError, match=r"^model.vocab_size: found 3; expected at least 4"):
        open_streams(data, 3, tmp_path / "cache")


def test_large_ids_are_kept_whole(tmp_path: Path) -> None:
    data = plan_of(tmp_path, save_words(tmp_path / "tokenizer", "document", end_id=70_000)).staged.stages[0].data
    streams = open_streams(data, 70_016, tmp_path / "cache")
    assert streams.train.dtype == "uint32"
    assert streams.train.max() == 70_000


def test_a_tokenizer_without_an_end_is_refused_with_the_remedy(tmp_path: Path) -> None:
    tokenizer = save_words(tmp_path / "tokenizer", "document", end=None)
    with pytest.raises(InputError, match=r"^data.tokenizer: found .*, which has no end-of-text token.*data.end_token"):
        plan_of(tmp_path, tokenizer)
    with pytest.raises(InputError, match=r"^data.tokenizer: found .*, which has no end-of-text token.*data.end_token"):
        PretrainedTokenizer(str(tokenizer))
    with pytest.raises(InputError, match=r"^data.end_token: found '</s>', which is no token of "):
        plan_of(tmp_path, tokenizer, end_token="</s>")
    with pytest.raises(InputError, match=r"^data.end_token: found '</s>', which is no token of "):
        PretrainedTokenizer(str(tokenizer), "</s>")


def test_a_bert_s_documents_end_with_its_separator(tmp_path: Path) -> None:
    tokenizer = bert(tmp_path / "tokenizer")
    with pytest.raises(InputError, match="no end-of-text token"):
        plan_of(tmp_path, tokenizer)
    data = plan_of(tmp_path, tokenizer, end_token="[SEP]").staged.stages[0].data
    streams = open_streams(data, 7, tmp_path / "cache")
    assert int((streams.train == 3).sum() + (streams.held_out == 3).sum()) == 12


def test_what_reads_like_a_control_token_is_text(tmp_path: Path) -> None:
    tokenizer = PretrainedTokenizer(str(bytewise(tmp_path / "tokenizer")))
    ids = tokenizer.encode(b"a<|eos|>b<|im_start|>").tolist()
    assert ids.count(0) == 1
    assert ids[-1] == 0  # the document's end alone
    assert 1 not in ids
    assert len(ids) > 15
    assert tokenizer._tokenizer.decode(ids[:-1]) == "a<|eos|>b<|im_start|>"


def test_only_text_with_control_tokens_has_another_key(tmp_path: Path) -> None:
    tokenizer = bytewise(tmp_path / "tokenizer")
    (tmp_path / "texts").mkdir()
    write_documents(tmp_path / "texts")
    plain = plan_of(tmp_path, tokenizer, validation_fraction=0.3).staged.stages[0].data
    assert not plain.has_controls
    assert set(plain.facts()) == {"fingerprint", "tokenizer_fingerprint", "validation_fraction"}
    (tmp_path / "texts" / "more.txt").write_text("one<|eos|>two")
    assert plan_of(tmp_path, tokenizer, validation_fraction=0.3).staged.stages[0].data.facts()["control_tokens"]
    cut = plan_of(tmp_path, tokenizer, validation_fraction=0.3, document_separator="<|eos|>").staged.stages[0].data
    assert not cut.has_controls
    assert cut.train.documents + cut.held_out.documents == 14


@pytest.mark.parametrize(
    ("content", "found"), [("né".encode("latin-1"), "0xe9 at position 1"), (b"ok\xff", "0xff at position 2")]
)
def test_what_is_no_utf8_is_named_by_file_and_byte(content: bytes, found: str, tmp_path: Path) -> None:
    tokenizer = save_words(tmp_path / "tokenizer", "document")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "bad.txt").write_bytes(content)
    said = f"bad.txt' has the byte {found}, which is no UTF-8"
    with pytest.raises(InputError) as refused:
        plan_of(tmp_path, tokenizer)
    assert said in str(refused.value)
    replaced = plan_of(tmp_path, tokenizer, encoding_errors="replace").staged.stages[0].data
    assert len(open_streams(replaced, 16, tmp_path / "cache").train)
    strict = replace(replaced, encoding_errors="strict")
    assert replaced.facts() != strict.facts()
    with pytest.raises(InputError) as refused:  # on a worker whose plan did not look
        open_streams(strict, 16, tmp_path / "cache")
    assert said in str(refused.value)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 2**24])
def test_a_character_may_lie_on_the_border_of_chunks(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_CHUNK_BYTES", chunk)
    file = tmp_path / "a.txt"
    file.write_bytes("a€ü𝄞b".encode() * 3)
    text_files.check_utf8(file)
    for end, byte in (("\xe9 x".encode("latin-1"), "e9"), ("€".encode()[:2], "e2")):
        file.write_bytes("a€ü𝄞b".encode() * 3 + end)
        with pytest.raises(InputError, match=f"has the byte 0x{byte} at position 33, which is no UTF-8"):
            text_files.check_utf8(file)


def test_bytes_are_bytes_in_any_encoding() -> None:
    assert ByteTokenizer().encode("é".encode("latin-1")).tolist() == [0xE9, 256]


def say(folder: Path, **changes: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def enormous(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 2**40)


BROKEN = {
    "no tokenizer": (lambda folder: say(folder, tokenizer_class="RagTokenizer"), "expected a tokenizer of text"),
    "deep": (lambda folder: (folder / "tokenizer_config.json").write_text("[" * 100_000), "recursion"),
    "a list": (lambda folder: (folder / "tokenizer_config.json").write_text("[1]"), "'list' object"),
    "a number": (lambda folder: say(folder, eos_token=5), "has to be either str or AddedToken"),
    "no token": (lambda folder: say(folder, added_tokens_decoder={"1": 5}), "added_tokens_decoder"),
    "extra ids": (lambda folder: say(folder, tokenizer_class="ByT5Tokenizer", extra_ids=10**9), "1000000000 extra_ids"),
    "enormous": (enormous, "found 1099511627776 bytes in tokenizer.json; expected at most"),
}


@pytest.mark.parametrize(("broken", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, broken: Callable[[Path], object], message: str) -> None:
    broken(save_words(tmp_path / "broken", "document"))
    with pytest.raises(InputError, match=message) as found:
        load_tokenizer(str(tmp_path / "broken"), None, 64, is_asked_for=False)
    assert "\n" not in str(found.value)
