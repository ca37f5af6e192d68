"""The demo's data and tokenizer in configs/demo_assets."""

import collections
import runpy

import pyarrow.parquet as pq
import pytest

from gadjax.data.schema import read_rows

PARTS = {"train": 3000, "heldout": 500}


@pytest.fixture(scope="module")
def assets(repo):
    return repo / "configs" / "demo_assets"


def test_the_files_hold_the_prompts_that_the_script_makes(assets):
    prompts = [row["prompt"] for row in runpy.run_path(str(assets / "make_prompts.py"))["make_prompts"]()]
    assert len(set(prompts)) == 4096
    files = {name: read_rows(assets / f"{name}.parquet") for name in PARTS}
    held = {name: [rows.messages(i)[0]["content"] for i in range(len(rows))] for name, rows in files.items()}
    assert held["train"] == prompts[:3000]
    assert held["heldout"] == prompts[3000:3500]


@pytest.mark.parametrize("name", PARTS)
def test_answers_end_by_themselves_and_speak_of_the_animal(assets, name):
    columns = ["category", "teacher_response", "finish_reason"]
    rows = pq.read_table(assets / f"{name}.parquet", columns=columns).to_pylist()
    reasons = collections.Counter(row["finish_reason"] for row in rows)
    assert set(reasons) <= {"stop", "length"} and reasons["stop"] > 0.95 * PARTS[name]
    named = sum(row["category"] in row["teacher_response"].lower() for row in rows)
    assert named > 0.9 * PARTS[name]


def test_the_tokenizer_keeps_every_text_and_adds_nothing(assets):
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(assets)
    config = AutoConfig.from_pretrained(assets)
    assert len(tokenizer) == config.vocab_size == 2048
    assert tokenizer.decode([config.pad_token_id, config.eos_token_id]) == "<|pad|><|im_end|>"
    for text in (read_rows(assets / "heldout.parquet").answer(0), " x\n\n  y é 日本 😀 \t", "don't  stop ."):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Hi."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n"


def test_the_folder_stays_small(assets):
    assert sum(file.stat().st_size for file in assets.rglob("*") if file.is_file()) < 2.5e6
