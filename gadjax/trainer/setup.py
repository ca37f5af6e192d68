"""From a config to everything that a run needs: checks first, then data, and weights last."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from gadjax.config import (
    check_warmup_length,
    discriminator_checkpoint,
    needs_trained_discriminator,
    resolve,
    template_args,
)
from gadjax.data.pipeline import Dataset, prepare
from gadjax.data.schema import read_rows
from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer, vocabulary_fingerprint
from gadjax.distill import state as states
from gadjax.distill.method import Method
from gadjax.errors import UserError
from gadjax.models.config import CAUSAL_LM, ModelConfig
from gadjax.models.model import Model, Params, grow_discriminator, resolve_dtype
from gadjax.models.weights import check_weights, load_params, read_hf_config, resolve_model
from gadjax.parallel import mesh as layout
from gadjax.rollout.sampler import Sampling

Watch = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True)
class Setup:
    """A checked run, before any weights are loaded."""

    config: ConfigDict
    mesh: jax.sharding.Mesh
    student: pathlib.Path
    tokenizer: ChatTokenizer
    train: Dataset
    heldout: Dataset | None
    generator: Model
    discriminator: Model
    hf_configs: dict[str, dict[str, Any]]  # of "generator" and "discriminator", as Hugging Face wrote them
    discriminator_init: pathlib.Path | None  # None: grown from the student

    @property
    def row_length(self) -> int:
        """Tokens of a packed row."""
        return self.config.row_length or self.sequence_length

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence at most: the width of the data's prompts, and max_response_length."""
        widths = [data.prompt_width for data in (self.train, self.heldout) if data]
        return max(widths) + self.config.data.max_response_length

    @property
    def row_multiple(self) -> int:
        """Rows of a program come in multiples of this."""
        return layout.batch_shards(self.mesh)

    def sampling(self, temperature: float) -> Sampling:
        """How the student's answers are drawn at a temperature."""
        return Sampling(
            max_response_length=self.config.data.max_response_length,
            eos_ids=tuple(self.tokenizer.eos_ids),
            pad_id=self.tokenizer.pad_id,
            temperature=temperature,
        )


def prepare_run(config: ConfigDict, watch: Watch = lambda what, done, total: None) -> Setup:
    """Checks config, models' configs, the headers of their weights, tokenizer, data and mesh.

    Args:
      config: as the user gave it.
      watch: called with what is being counted, how many are done and how many there are, as the data is tokenised.

    Raises:
      UserError: at the first that cannot work.
    """
    config = resolve(config)
    mesh = _mesh(config)
    student = resolve_model(config.student)
    model_config, hf_config = read_hf_config(student)
    generator = Model(_runtime(model_config, config), "lm", mesh)
    discriminator, hf_discriminator, init = Model(generator.config, "score", mesh), hf_config, None
    if named := discriminator_checkpoint(config):
        init = resolve_model(named)
        other_config, hf_discriminator = read_hf_config(init)
        discriminator = Model(_runtime(other_config, config), "score", mesh)
        if needs_trained_discriminator(config) and hf_discriminator["architectures"][0].endswith(CAUSAL_LM):
            raise UserError(
                f"config.discriminator.init {named} is a causal language model, whose new scalar head nothing trains "
                "while config.gad.train_discriminator is off: name an exported discriminator, or add the warmup stage"
            )

    tokenizer = load_tokenizer(
        student,
        chat_template=config.data.chat_template or None,
        template_args=template_args(config),
        date=config.data.template_date,
    )
    if init is not None and vocabulary_fingerprint(init) != tokenizer.vocabulary_fingerprint():
        raise UserError(
            f"config.discriminator.init {init} has another tokenizer than the student {student}: the discriminator "
            "reads the student's tokens, so choose a checkpoint of the same family"
        )
    if not config.random_init:
        check_weights(student, generator.abstract_params())
    if init is not None:
        check_weights(init, discriminator.abstract_params(), missing=("score",))
    setup = Setup(
        config=config,
        mesh=mesh,
        student=student,
        tokenizer=tokenizer,
        train=_dataset(config, tokenizer, "train", watch),
        heldout=_dataset(config, tokenizer, "heldout", watch) if config.data.heldout else None,
        generator=generator,
        discriminator=discriminator,
        hf_configs={"generator": hf_config, "discriminator": hf_discriminator},
        discriminator_init=init,
    )
    _check_sizes(setup)
    return setup


def stage_lengths(setup: Setup) -> dict[str, int]:
    """Steps of each stage of the run."""
    per_epoch = setup.train.steps_per_epoch(setup.config.batch_size)
    sections = {stage: setup.config[stage] for stage in setup.config.stages}
    return {stage: s.steps or max(1, round(s.epochs * per_epoch)) for stage, s in sections.items()}


def make_method(setup: Setup, stage: str) -> Method:
    """The settings of a stage's steps."""
    config, section = setup.config, setup.config[stage]
    moments = dict(
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
        eps=config.optimizer.eps,
        weight_decay=config.optimizer.weight_decay,
        clip=config.optimizer.clip_norm,
    )
    method = Method(
        generator=setup.generator,
        sampling=setup.sampling(config.rollout.temperature),
        generator_optimizer=states.adamw(section.generator_learning_rate, **moments),
        generator_micro_batches=config.micro_batches.generator,
        logprob_chunk=config.logprob_chunk,
        num_samples=config.rollout.num_samples,
    )
    if stage == "seqkd":
        return method
    method = dataclasses.replace(
        method,
        discriminator=setup.discriminator,
        discriminator_optimizer=states.adamw(section.discriminator_learning_rate, **moments),
        discriminator_micro_batches=config.micro_batches.discriminator,
        discriminator_loss=config.discriminator.loss,
        bt_temperature=config.discriminator.bt_temperature,
        updates_per_step=config.discriminator.updates_per_step,
    )
    if stage == "warmup":
        return method
    return dataclasses.replace(
        method,
        clip=section.clip,
        dual_clip=section.dual_clip,
        kl_coefficient=section.kl_coefficient,
        entropy_coefficient=section.entropy_coefficient,
        ppo_minibatches=section.ppo_minibatches,
        ppo_epochs=section.ppo_epochs,
        aggregation=section.aggregation,
        sft_coefficient=section.sft_coefficient,
        importance_cap=section.importance_cap,
    )


def initial_generator(setup: Setup) -> Params:
    """The student's float32 parameters in the training layout."""
    model, mesh = setup.generator, setup.mesh
    if setup.config.random_init:
        return jax.jit(model.init, out_shardings=layout.param_shardings(model, mesh))(_key(setup, "generator"))
    return load_params(setup.student, model.config, layout.abstract_params(model, mesh))


def initial_discriminator(setup: Setup, generator: Params) -> Params:
    """The discriminator's parameters: of the checkpoint `discriminator.init`, else grown with a fresh head.

    Args:
      generator: the parameters to grow it from, where no checkpoint is named.
    """
    model, shardings = setup.discriminator, layout.param_shardings(setup.discriminator, setup.mesh)
    key = _key(setup, "discriminator")
    if setup.discriminator_init is None:
        grow = lambda generator, key: grow_discriminator(generator, model.init_head(key))  # noqa: E731
        return jax.jit(grow, out_shardings=shardings)(generator, key)
    head = jax.jit(model.init_head, out_shardings=shardings["score"])(key)
    abstract = layout.abstract_params(model, setup.mesh)
    return load_params(setup.discriminator_init, model.config, abstract, missing={"score": head})


def _mesh(config: ConfigDict) -> jax.sharding.Mesh:
    mesh = layout.make_mesh(**config.mesh)
    shards = layout.batch_shards(mesh)
    if config.batch_size % shards:
        raise UserError(
            f"config.batch_size {config.batch_size} is not divisible by the {shards} parts that mesh.data * mesh.fsdp "
            f"split it into: use a multiple of {shards}, or give more devices to config.mesh.tensor"
        )
    return mesh


def _check_sizes(setup: Setup) -> None:
    """Data, networks and config fit each other."""
    config, tokens = setup.config, setup.tokenizer.vocab_size
    if len(setup.train) < config.batch_size:
        raise UserError(
            f"{config.data.train} has {len(setup.train)} usable rows, fewer than config.batch_size {config.batch_size}"
        )
    folds = config.evaluation.two_sample_folds
    if setup.heldout and min(config.evaluation.prompts or len(setup.heldout), len(setup.heldout)) < folds:
        raise UserError(
            f"config.evaluation.two_sample_folds is {folds}, more than the held-out prompts to measure on: lower it, "
            "or give more data and a higher config.evaluation.prompts"
        )
    places = (setup.generator, setup.student), (setup.discriminator, setup.discriminator_init or setup.student)
    for model, where in places:
        model.config.check_length(setup.sequence_length, str(where))
        if tokens > model.config.vocab_size:
            raise UserError(f"{where} has {model.config.vocab_size} embeddings but its tokenizer {tokens} tokens")
    if setup.row_length < setup.sequence_length:
        raise UserError(
            f"config.row_length {setup.row_length} is shorter than the longest prompt and "
            f"config.data.max_response_length together, {setup.sequence_length}: raise it, or leave it at 0"
        )
    if "warmup" in config.stages:
        check_warmup_length(config, stage_lengths(setup)["warmup"])


def _runtime(model_config: ModelConfig, config: ConfigDict) -> ModelConfig:
    return dataclasses.replace(model_config, dtype=resolve_dtype(config.dtype), remat=config.remat)


def _dataset(config: ConfigDict, tokenizer: ChatTokenizer, split: str, watch: Watch) -> Dataset:
    path = config.data[split]
    return prepare(
        read_rows(path),
        tokenizer,
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.data.max_response_length,
        cut_answers=config.data.cut_answers,
        source_name=f"config.data.{split} {path}",
        progress=functools.partial(watch, f"tokenising data.{split}"),
    )


def _key(setup: Setup, network: str) -> jax.Array:
    number = ("generator", "discriminator").index(network)
    return jax.random.fold_in(jax.random.key(setup.config.seed), 1000 + number)
