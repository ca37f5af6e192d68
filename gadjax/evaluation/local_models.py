"""Models on this machine: their architecture, tokenizer and identity, checked before they load."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

from etils import epath
from jax.sharding import Mesh

from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer
from gadjax.errors import UserError
from gadjax.evaluation.model_sources import BEST_STEP, CHECKPOINT, ModelSource
from gadjax.evaluation.result_cache import digest
from gadjax.models import layouts, lora
from gadjax.models.architecture import CAUSAL_LM, TOKEN_CLASSIFICATION, ModelConfig
from gadjax.models.hf_files import pooling_of
from gadjax.models.model import Model, Params, cast_params, resolve_dtype
from gadjax.models.weights import check_weights, load_params, read_hf_config, resolve_model
from gadjax.parallel import mesh as meshes
from gadjax.rollout.chat_model import Head
from gadjax.workdir.checkpoints import Checkpoints
from gadjax.workdir.facts import network_model, read_workdir

_HF_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
_READ_WHOLE = 2**20  # bytes: the contents of smaller files of a checkpoint are hashed


class Loaded(NamedTuple):
    """A model with its parameters on a mesh."""

    model: Model
    params: Params
    mesh: Mesh


@dataclasses.dataclass(frozen=True)
class LocalModel:
    """A checked model, before its weights are loaded.

    Attributes:
      source: where it comes from, with the step if it is a checkpoint.
      stage: the run's stage that the checkpoint is from; None for other models.
      config: its architecture, with adapters if the run trains them.
      dtype: of computation and decoding weights.
      tokenizer: of its own.
      eos_ids: end its responses.
      identity: a hash of all that its answers depend on: weights, tokenizer, ends and dtype.
      head: "lm" of a causal language model, "score" of a token classifier.
      pooling: of a token classifier's values (`gadjax.models.hf_files.pooling_of`).
    """

    source: ModelSource
    stage: str | None
    config: ModelConfig
    dtype: str
    tokenizer: ChatTokenizer
    eos_ids: tuple[int, ...]
    identity: str
    head: Head = "lm"
    pooling: str = "last"

    def load(self, *, training: bool = False) -> Loaded:
        """Reads the weights: for training in float32, sharded over all devices; else in `dtype` on every device.

        Those of a token classifier, which does not decode, are always sharded.
        """
        decodes = not training and self.head == "lm"
        mesh = meshes.make_mesh(-1, 1, 1) if decodes else meshes.make_mesh(1, -1, 1)
        rules = meshes.DECODING_RULES if decodes else meshes.TRAINING_RULES
        kept = "float32" if training else self.dtype
        model = Model(dataclasses.replace(self.config, dtype=self.dtype), self.head, mesh)
        abstract = layouts.abstract_params(model, mesh, kept, rules)
        if self.source.kind != CHECKPOINT:
            return Loaded(model, load_params(resolve_model(self.source.where), self.config, abstract), mesh)
        workdir = pathlib.Path(self.source.where)
        like = lora.trained(layouts.abstract_params(model, mesh, rules=rules))
        with contextlib.closing(Checkpoints.of(workdir, read_workdir(workdir)[0])) as checkpoints:
            own = checkpoints.params(self.source.step, "generator", like)
        base = lora.frozen(abstract)
        if base is not None:
            student = read_workdir(workdir)[0]["student"]
            base = load_params(resolve_model(student), self.config, base)
        return Loaded(model, lora.join(base, cast_params(own, kept)), mesh)


def inspect(source: ModelSource, *, dtype: str = "auto") -> LocalModel:
    """Checks a causal language model's files, architecture and tokenizer without loading its weights.

    Args:
      source: of a checkpoint, a directory or a hub id.
      dtype: "auto" is float32 on CPU and bfloat16 elsewhere.

    Raises:
      UserError: it cannot be loaded, or is no causal language model; the message names it.
    """
    read = _inspect_checkpoint if source.kind == CHECKPOINT else _inspect_directory
    return _local_model(dtype, *read(source))


def inspect_discriminator(source: ModelSource, *, dtype: str = "auto") -> LocalModel:
    """Checks an exported discriminator of either kind (`gadjax.evaluation.scoring`); arguments as for `inspect`.

    Raises:
      UserError: it cannot be loaded, or is no discriminator; the message names it.
    """
    return _local_model(dtype, *_inspect_directory(source, discriminator=True))


def same_vocabulary(a: LocalModel, b: LocalModel) -> bool:
    """Whether an id means the same token to both. Sizes of embeddings don't say: Qwen pads them differently."""
    return a.tokenizer.vocabulary_fingerprint() == b.tokenizer.vocabulary_fingerprint()


def _local_model(dtype: str, source, stage, config, tokenizer, eos_ids, weights, *judges) -> LocalModel:
    """The model with its identity; `weights` identifies weights and config, `judges` are head and pooling."""
    dtype = resolve_dtype(dtype)
    identity = digest(weights, tokenizer.fingerprint(), eos_ids, dtype)
    return LocalModel(source, stage, config, dtype, tokenizer, eos_ids, identity, *judges)


def _inspect_directory(source: ModelSource, *, discriminator: bool = False):
    path = resolve_model(source.where)
    config, hf_config = read_hf_config(path)
    architecture = hf_config["architectures"][0]
    head: Head = "score" if discriminator and architecture.endswith(TOKEN_CLASSIFICATION) else "lm"
    if head == "lm" and not architecture.endswith(CAUSAL_LM):
        needed = "a discriminator is a token classifier or" if discriminator else "what is evaluated is"
        raise UserError(f"{source.given} is a {architecture}, but {needed} a causal language model")
    check_weights(path, config, Model(config, head).abstract_params())
    tokenizer = load_tokenizer(path)
    files = sorted({file for pattern in _HF_FILES for file in path.glob(pattern)})
    judges = head, pooling_of(hf_config, str(path / "config.json"))
    return source, None, config, tokenizer, tokenizer.eos_ids, [_hash(file) for file in files], *judges


def _inspect_checkpoint(source: ModelSource):
    workdir = pathlib.Path(source.where)
    config, facts = read_workdir(workdir)
    with contextlib.closing(Checkpoints.of(workdir, config)) as checkpoints:
        saved = checkpoints.steps()
        if not saved:
            raise UserError(f"{source.given} has no checkpoint yet")
        step = checkpoints.best_step() if source.step == BEST_STEP else source.step
        step = saved[-1] if step is None else step
        if step not in saved:
            known = ", ".join(map(str, saved))
            raise UserError(f"{source.given}: there is no checkpoint of step {step}; there are: {known}")
        stage = checkpoints.progress(step)["stage"]
        folder = checkpoints.directory / str(step)
    model = network_model(config, facts, "generator")
    tokenizer = load_tokenizer(workdir / "tokenizer")
    # The ids that ended the run's responses; the tokenizer's folder has no generation config.
    eos_ids = tuple(facts["generation_config"]["eos_token_id"])
    weights = [facts["hf_configs"]["generator"], *_contents(folder)]
    if model.config.lora:
        student = resolve_model(config["student"])
        check_weights(student, model.config, lora.frozen(model.abstract_params()))
        weights += [_hash(file) for file in sorted(student.glob("*.safetensors"))]
    return dataclasses.replace(source, step=step), stage, model.config, tokenizer, eos_ids, weights


def _contents(folder: epath.Path) -> Iterator[list[str]]:
    """What identifies a checkpoint: its files' sizes and small files' contents; arrays have random file names."""
    for file in sorted(_files(folder)):
        size = file.stat().length
        yield [str(file.relative_to(folder)), str(size), _hash(file) if size <= _READ_WHOLE else ""]


def _files(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below a folder. epath's `walk` does not work on object stores: its folders lack their gs://."""
    for path in folder.iterdir():
        if not path.is_dir():
            yield path
        elif path != folder:  # an object store may list a folder in itself
            yield from _files(path)


def _hash(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "blake2b").hexdigest()
