"""Small networks of a suite's own: their folders, their fits, and a teacher that is exact at temperature 1."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from benchmarks.evidence import runs
from benchmarks.evidence.runs import Cost
from gadjax.config import default_config
from gadjax.config.shipped import demo_assets
from gadjax.data.tokenizer import load_tokenizer
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import load_params, read_hf_config, resolve_model

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder's size; heads have 32 dimensions."""

    layers: int
    width: int

    def config(self) -> dict:
        """The contents of its config.json: the demo's, in this size, with a head of its own."""
        multiple = 32
        inner = -(-8 * self.width // (3 * multiple)) * multiple  # three matrices with as many weights as two of 4 x
        sizes = {"hidden_size": self.width, "intermediate_size": inner, "num_hidden_layers": self.layers}
        heads = {"num_attention_heads": self.width // 32, "num_key_value_heads": self.width // 32, "head_dim": 32}
        return json.loads((demo_assets() / "config.json").read_text()) | sizes | heads | {"tie_word_embeddings": False}


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a network is fitted to answers by cross entropy.

    Attributes:
      steps, rate: of the first run.
      finish_steps, finish_rate: of a second run, which starts from the best checkpoint of the first. Each run's
        rate is constant, and the end of a fit at a high rate is a noisy one: arms at a lower rate would seem to help
        whatever they do.
      batch: answers in a step.
      every: steps between measurements, which choose the best checkpoint.
    """

    steps: int
    rate: float
    batch: int = 64
    finish_steps: int = 0
    finish_rate: float = 3e-4
    every: int = 100

    @property
    def last_rate(self) -> float:
        """The rate at which the fit ends."""
        return self.finish_rate if self.finish_steps else self.rate


@dataclasses.dataclass(frozen=True)
class Data:
    """Answers to learn from and to measure on.

    Attributes:
      limit: tokens of an answer, at most.
      prompt_limit: tokens of a prompt, at most.
      keep_cut: whether answers that were cut are used, without their end.
    """

    train: pathlib.Path
    heldout: pathlib.Path
    limit: int
    prompt_limit: int = 64
    keep_cut: bool = False


def config_of(student: pathlib.Path, data: Data, seed: int) -> ConfigDict:
    """The config that all runs of a suite share: small networks in float32, nothing measured along the run."""
    config = default_config()
    config.student, config.seed = str(student), seed
    config.remat = "none"
    config.data.train = str(data.train)
    config.data.max_prompt_length = data.prompt_limit
    config.data.cut_answers = "keep" if data.keep_cut else "drop"
    config.data.max_response_length = data.limit
    config.export_dtype = "float32"
    config.log.tensorboard = False
    return config


def write_shape(shape: Shape, folder: pathlib.Path) -> pathlib.Path:
    """Writes the folder of a network without weights, with the demo's tokenizer, and returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {name: (demo_assets() / name).read_bytes() for name in TOKENIZER}
    contents["config.json"] = (json.dumps(shape.config(), indent=2) + "\n").encode()
    for name, content in contents.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:  # another process may be reading it
            path.write_bytes(content)
    return folder


@dataclasses.dataclass(frozen=True)
class Fitting:
    """A network that is fitted to answers by cross entropy, and its folder.

    Attributes:
      student: the folder of the network that it starts from.
      data: the answers.
      how: lengths and rates.
      seed: of weights and data.
      folder: the export. The runs are beside it, as FOLDER.fit and FOLDER.finish.
      random: whether the start has random weights.
    """

    student: pathlib.Path
    data: Data
    how: Fit
    seed: int
    folder: pathlib.Path
    random: bool

    def fit(self) -> Cost:
        """Fits it, writes the best as its folder, and returns what it took. What is there already is only read."""
        spent = Cost()
        for config, workdir, out in self._runs():
            runs.train(config, workdir)
            spent += runs.cost(workdir)
            runs.export(workdir, out)
        return spent

    def is_fitted(self) -> bool:
        """Whether `fit` has nothing left to do."""
        return all(
            runs.is_finished(config, workdir) and (out / "config.json").exists()
            for config, workdir, out in self._runs()
        )

    def _runs(self) -> Iterator[tuple[ConfigDict, pathlib.Path, pathlib.Path]]:
        """The config and workdir of each run, and the folder of its best checkpoint."""
        how, folder = self.how, self.folder
        first = folder.with_name(f"{folder.name}.fit")
        best = first / "best" if how.finish_steps else folder
        yield self._config(self.student, how.steps, how.rate, random=self.random), first, best
        if how.finish_steps:
            config = self._config(best, how.finish_steps, how.finish_rate, random=False)
            yield config, folder.with_name(f"{folder.name}.finish"), folder

    def _config(self, student: pathlib.Path, steps: int, rate: float, *, random: bool) -> ConfigDict:
        """The config of a run that starts from `student`."""
        config = config_of(student, self.data, self.seed)
        config.random_init = random
        config.stages = ("seqkd",)
        config.batch_size = self.how.batch
        config.optimizer.clip_norm = 1.0
        config.seqkd.steps, config.seqkd.generator_learning_rate = steps, rate
        config.data.heldout = str(self.data.heldout)
        config.evaluation.prompts, config.evaluation.shown = 0, 0
        config.eval_every = self.how.every
        config.checkpoint.every, config.checkpoint.keep, config.checkpoint.best = steps, 1, "nll"
        return config


def at_temperature(model: pathlib.Path, temperature: float, out: pathlib.Path) -> None:
    """Writes a copy of a model whose distribution at temperature 1 is the model's at `temperature`.

    The final norm's weight is divided by the temperature, and so are all logits.
    """
    if (out / "config.json").exists():
        return
    path = resolve_model(model)
    config, hf_config = read_hf_config(path)
    params = load_params(path, config, Model(config).abstract_params())
    params["final_norm"] = jax.tree.map(lambda weight: weight / temperature, params["final_norm"])
    with tempfile.TemporaryDirectory() as tokenizer:
        load_tokenizer(path).save(tokenizer)
        save_pretrained(
            out,
            params,
            config,
            hf_config,
            kind="generator",
            tokenizer_dir=pathlib.Path(tokenizer),
            generation_config=runs.read_json(path / "generation_config.json"),
        )
