"""Tokenizers' files as every version of transformers reads them."""

import json
import shutil

from gadjax.data.tokenizer import load_tokenizer


def test_a_saved_tokenizer_is_one_for_transformers_4_too(tiny_directory, tmp_path):
    """Names that only transformers 5 knows are written as all versions read them; other fields and files stay."""
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny_directory, source)
    file = source / "tokenizer_config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    config |= {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>"], "my_field": 7}
    file.write_text(json.dumps(config))
    out.mkdir()
    tokenizer = load_tokenizer(source, date="2025-01-02")
    tokenizer.save(out)
    saved = json.loads((out / "tokenizer_config.json").read_text())
    assert saved["tokenizer_class"] == "PreTrainedTokenizerFast" and "extra_special_tokens" not in saved
    assert "<|im_start|>" in saved["additional_special_tokens"] and saved["my_field"] == 7
    assert saved["chat_template"] == (out / "chat_template.jinja").read_text()
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert load_tokenizer(out).fingerprint() == tokenizer.fingerprint()
