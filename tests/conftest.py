"""Fixtures for every test. Eight virtual CPU devices, so that sharding is never switched off.

The tests of whole runs share a student without weights (`student`), a few teacher answers (`train_file`,
`heldout_file`) and a config that distils them in a few small steps (`tiny_config`).
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
import runpy
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' }}"
    "{{ message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
RICH = {
    "warmup.steps": 3,
    "gad.steps": 3,
    "gad.ppo_minibatches": 2,
    "gad.kl_coefficient": 0.1,
    "micro_batches.generator": 2,
    "micro_batches.discriminator": 2,
    "discriminator.updates_per_step": 2,
    "discriminator.replay_size": 24,
    "eval_every": 2,
    "checkpoint.every": 1,
    "checkpoint.keep": 10,
    "evaluation.two_sample_folds": 2,
    "evaluation.two_sample_epochs": 1,
    "log.tensorboard": True,
}
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="session")
def repo() -> pathlib.Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real data beside the repository; tests that need it skip where it is absent."""
    path = ROOT.parent / "shared"
    if not (path / "data").is_dir():
        pytest.skip(f"no real data at {path}")
    return path


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder of compiled programs for this session, so that equal runs compile once."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def quick_compile(compilation_cache: pathlib.Path) -> Iterator[None]:
    """Compiles badly and once: the programs of these tests run for milliseconds."""
    with _quick_compile(compilation_cache):
        yield


@contextlib.contextmanager
def _quick_compile(folder: pathlib.Path) -> Iterator[None]:
    import jax
    from jax.experimental.compilation_cache import compilation_cache as cache

    settings = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    cache.reset_cache()


@pytest.fixture(scope="session")
def largest_in_loops() -> Callable[..., int]:
    """Bytes that the largest collective in a loop, or in those of a name, of a compiled program moves; 0 for none."""
    from gadjax.planning.hlo import HloProgram
    from gadjax.planning.hlo_costs import collectives

    def largest(compiled: Any, name: str | None = None) -> int:
        program = HloProgram(compiled.as_text())
        if name:
            program.check_loop(name)
        inside = (found for found in collectives(program) if (name in found.loops if name else found.in_loop))
        return max((found.bytes for found in inside), default=0)

    return largest


@pytest.fixture(scope="session")
def hf_config() -> Callable[..., dict[str, Any]]:
    """The config.json of a small untied Llama; the arguments replace its fields."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 320,  # more rows than the tokenizer has ids, as Qwen's
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    return lambda **fields: config | fields


@pytest.fixture(scope="session")
def write_tokenizer() -> Callable[[pathlib.Path, list[str]], None]:
    """Writes a byte-level BPE tokenizer, trained on a few words, with a ChatML template."""

    def write(directory: pathlib.Path, words: list[str]) -> None:
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
        backend.train_from_iterator([" ".join(words)] * 4, trainer)
        PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
        ).save_pretrained(directory)

    return write


@pytest.fixture(scope="session")
def student(tmp_path_factory, hf_config, write_tokenizer) -> pathlib.Path:
    """A student's directory without weights: config.json and a tokenizer."""
    directory = tmp_path_factory.mktemp("student")
    write_tokenizer(directory, [*WORDS, "user", "assistant", "system", "What", "is", "plus"])
    (directory / "config.json").write_text(json.dumps(hf_config()))
    return directory


@pytest.fixture(scope="session")
def add_weights(tmp_path_factory) -> Callable[[pathlib.Path], pathlib.Path]:
    """Puts weights of small values beside a config.json, those of a causal language model."""
    import jax
    import numpy as np

    from gadjax.models.model import Model
    from gadjax.models.save import save_pretrained
    from gadjax.models.weights import read_hf_config

    def add(directory: pathlib.Path) -> pathlib.Path:
        config, hf_config = read_hf_config(directory)
        rng = np.random.default_rng(0)
        random = lambda leaf: 0.1 * rng.normal(size=leaf.shape).astype(np.float32)  # noqa: E731
        params = jax.tree.map(random, Model(config).abstract_params())
        exported = tmp_path_factory.mktemp("weights") / "export"
        save_pretrained(exported, params, config, hf_config, kind="generator")
        shutil.copy(exported / "model.safetensors", directory)
        return directory

    return add


@pytest.fixture(scope="session")
def write_teacher() -> Callable[[pathlib.Path, list[str], list[str]], pathlib.Path]:
    """Writes prompts and the teacher's answers as Parquet."""

    def write(path: pathlib.Path, prompts: list[str], answers: list[str]) -> pathlib.Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        kind = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
        columns = {"content": pa.array(chats, kind), "teacher_response": pa.array(answers, pa.string())}
        pq.write_table(pa.table(columns), path)
        return path

    return write


def _sums(numbers: range) -> tuple[list[str], list[str]]:
    pairs = [(n // 10, n % 10) for n in numbers]
    prompts = [f"What is {WORDS[a]} plus {WORDS[b]}" for a, b in pairs]
    return prompts, [" ".join(WORDS[int(digit)] for digit in str(a + b)) for a, b in pairs]


@pytest.fixture(scope="session")
def train_file(tmp_path_factory, write_teacher) -> pathlib.Path:
    """Teacher answers to 24 prompts."""
    return write_teacher(tmp_path_factory.mktemp("data") / "train.parquet", *_sums(range(24)))


@pytest.fixture(scope="session")
def heldout_file(tmp_path_factory, write_teacher) -> pathlib.Path:
    """Teacher answers to 8 other prompts."""
    return write_teacher(tmp_path_factory.mktemp("data") / "heldout.parquet", *_sums(range(40, 48)))


@pytest.fixture(scope="session")
def tiny_config(student, train_file, heldout_file) -> Callable[..., Any]:
    """A config of a few small steps from random weights; the argument's dotted fields replace its own."""

    def make(fields: dict[str, Any] | None = None) -> Any:
        from configs.base import get_config

        config = get_config().unlock()
        config.student = str(student)
        config.random_init = True
        config.data.train, config.data.heldout = str(train_file), str(heldout_file)
        config.data.max_prompt_length, config.data.max_response_length = 48, 8
        config.batch_size = 8
        config.remat = "none"
        config.rollout.num_samples = 2
        config.rollout.temperature = 1.0
        for stage in (config.seqkd, config.warmup, config.gad):
            stage.steps = 2
            stage.generator_learning_rate = 1e-2
        for stage in (config.warmup, config.gad):
            stage.discriminator_learning_rate = 1e-2
        config.warmup.discriminator_only_steps = 1
        config.eval_every = 0
        config.evaluation.shown = 2
        config.export_dtype = "float32"
        config.log.tensorboard = False
        config.update_from_flattened_dict(fields or {})
        return config.lock()

    return make


@pytest.fixture(scope="module")
def one_device() -> Iterator[None]:
    """Commands see one device: a run compiles in half the time. `tests/test_train.py` has one on all eight."""
    with _one_device():
        yield


@pytest.fixture(scope="session")
def one_device_context() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """The same for a block."""
    return _one_device


@pytest.fixture
def all_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes `one_device` for a test."""
    from gadjax.parallel import mesh

    monkeypatch.setattr(mesh, "make_mesh", getattr(mesh.make_mesh, "func", mesh.make_mesh))


@contextlib.contextmanager
def _one_device() -> Iterator[None]:
    import jax

    from gadjax.parallel import mesh

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "make_mesh", functools.partial(mesh.make_mesh, devices=jax.devices()[:1]))
        yield


class FinishedRun(NamedTuple):
    """A run that reached its end. Tests must leave its workdir as it is."""

    workdir: pathlib.Path
    config: Any
    figures: dict[str, dict[str, float]]


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_config, compilation_cache) -> FinishedRun:
    """Warmup and GAD with replay, several updates of the discriminator and several minibatches."""
    from gadjax.train import run

    config = tiny_config(RICH)
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    with _quick_compile(compilation_cache), _one_device():
        return FinishedRun(workdir, config, run(config, workdir))


@pytest.fixture(scope="session")
def rich_fields() -> dict[str, Any]:
    """The fields of `finished_run`'s config."""
    return dict(RICH)


class Finished(NamedTuple):
    """What a command left."""

    status: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capfd, compilation_cache) -> Callable[..., Finished]:
    """Runs `python -m MODULE ARGUMENTS` inside this process."""
    from absl import flags

    def forget() -> None:
        """Each call of a command defines its flags anew; those of the last would clash."""
        ours = {
            flag.name
            for module, defined in flags.FLAGS.flags_by_module_dict().items()
            for flag in defined
            if "gadjax" in module or flag.name.partition(".")[0] == "config"
        }
        for name in ours & set(flags.FLAGS):
            delattr(flags.FLAGS, name)

    def run(module: str, *arguments: str) -> Finished:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))
        monkeypatch.setattr(sys, "argv", [module, *map(str, arguments)])
        capfd.readouterr()
        try:
            with warnings.catch_warnings(), pytest.raises(SystemExit) as exit:
                warnings.simplefilter("ignore", RuntimeWarning)  # the module may be imported already
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        finally:
            forget()
        return Finished(exit.value.code or 0, *capfd.readouterr())

    return run


class GreedyAnswer(NamedTuple):
    """What transformers answered."""

    text: str
    tokens: int
    ended: bool


@pytest.fixture(scope="session")
def transformers_greedy() -> Callable[[pathlib.Path, list[Any], int], list[GreedyAnswer]]:
    """Greedy answers of transformers' own `generate`, one chat at a time, in float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def answer(model: pathlib.Path, chats: list[Any], limit: int) -> list[GreedyAnswer]:
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        network = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        answers = []
        for chat in chats:
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
            with torch.no_grad():
                out = network.generate(**ids, do_sample=False, max_new_tokens=limit)
            own = out[0, ids["input_ids"].shape[1] :]
            text = tokenizer.decode(own, skip_special_tokens=True)
            answers.append(GreedyAnswer(text, len(own), int(own[-1]) == tokenizer.eos_token_id))
        return answers

    return answer
