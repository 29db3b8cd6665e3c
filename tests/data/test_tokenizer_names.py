from __future__ import annotations

from pathlib import Path

from raystage.data.tokenizer_names import tokenizer_fingerprint


def test_tokenizers_without_a_folder() -> None:
    assert tokenizer_fingerprint("bytes") == "bytes"
    assert tokenizer_fingerprint("gpt2") == "gpt2"
    assert tokenizer_fingerprint("meta-llama/Llama-3.2-1B") == "meta-llama/Llama-3.2-1B"


def test_a_tokenizer_folder_is_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "README.md").write_text(name)
    first, second = (tokenizer_fingerprint(str(tmp_path / name)) for name in ("a", "b"))
    assert first == second
    assert first.startswith("sha256:")
    (tmp_path / "b" / "special_tokens_map.json").write_text("{}")
    assert tokenizer_fingerprint(str(tmp_path / "b")) != first
