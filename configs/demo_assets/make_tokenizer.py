"""Makes the demo's student without weights: a tokenizer trained on train.parquet, and the model's config.

    python configs/demo_assets/make_tokenizer.py

Byte-level BPE with 2,048 entries and a ChatML template without a system prompt of its own, so that prompts stay short.
Writes into this folder, which transformers then loads as a tokenizer, and prints how many tokens prompts and answers
have.
"""

import json
import pathlib
from collections.abc import Iterable

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

FOLDER = pathlib.Path(__file__).parent
ENTRIES = 2048
PAD, TURN, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' "
    "+ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def make_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer with ids 0, 1, 2 for padding, the start of a turn and its end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[PAD, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),  # every byte, so that any text has ids
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[TURN],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def model_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, object]:
    """A Llama of 2.7 million parameters."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def main() -> None:
    rows = pq.read_table(FOLDER / "train.parquet", columns=["content", "teacher_response"]).to_pylist()
    prompts = [turn["content"] for row in rows for turn in row["content"]]
    answers = [row["teacher_response"] for row in rows]
    roles = ["user\n", "assistant\n"] * len(rows)
    make_tokenizer([*roles, *prompts, *answers]).save_pretrained(FOLDER)

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    for name, content in (("config.json", model_config(tokenizer)), ("generation_config.json", ids)):
        (FOLDER / name).write_text(json.dumps(content, indent=2) + "\n")

    chats = tokenizer.apply_chat_template(
        [row["content"] for row in rows], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    for name, lengths in (
        ("prompts with the template", [len(chat) for chat in chats]),
        ("answers with their end", [len(tokenizer(answer)["input_ids"]) + 1 for answer in answers]),
    ):
        p50, p95 = np.percentile(lengths, [50, 95])
        print(f"tokens of {name}: p50 {p50:.0f}, p95 {p95:.0f}, max {max(lengths)}")


if __name__ == "__main__":
    main()
