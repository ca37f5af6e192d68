"""Small real things for the data tests: a byte-level tokenizer with a chat template, and Parquet files."""

import pathlib
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CHAT = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


@pytest.fixture(scope="session")
def chatml() -> str:
    """A ChatML template."""
    return CHATML


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory) -> pathlib.Path:
    """A directory with a byte-level BPE tokenizer of some 300 ids and a ChatML template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    backend.train_from_iterator(
        ["the cat sat on the mat", "what is the name of the cat", "system user assistant"], trainer
    )
    directory = tmp_path_factory.mktemp("tiny")
    PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    ).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny(tiny_directory):
    """The tokenizer of `tiny_directory`."""
    from gadjax.data.tokenizer import load_tokenizer

    return load_tokenizer(tiny_directory)


@pytest.fixture(scope="session")
def qwen(shared):
    """The real tokenizer of Qwen2.5."""
    from gadjax.data.tokenizer import load_tokenizer

    return load_tokenizer(shared / "tokenizers" / "qwen2.5")


@pytest.fixture(scope="session")
def llama(shared):
    """The real tokenizer of Llama 3.1."""
    from gadjax.data.tokenizer import load_tokenizer

    return load_tokenizer(shared / "tokenizers" / "llama-3.1")


@pytest.fixture
def write(tmp_path) -> Callable[..., str]:
    """Writes teacher Parquet; a prompt may be a string (one user turn) or a list of messages."""

    def write(prompts: Sequence, answers: Sequence[str | None], name: str = "teacher.parquet", **columns) -> str:
        chats = [[{"role": "user", "content": p}] if isinstance(p, str) else p for p in prompts]
        table = pa.table(
            {"content": pa.array(chats, CHAT), "teacher_response": pa.array(answers, pa.string()), **columns}
        )
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return str(path)

    return write
