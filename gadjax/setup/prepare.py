"""From a config to everything that a run needs before its weights: checked networks, tokenizer and data."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

from ml_collections import ConfigDict

from gadjax.config.check import (
    check_warmup_length,
    discriminator_checkpoint,
    needs_trained_discriminator,
    resolve,
    template_args,
)
from gadjax.data.pipeline import Dataset, prepare, same_prompt, split
from gadjax.data.schema import read_rows
from gadjax.data.tokenizer import ChatTokenizer, load_tokenizer, vocabulary_fingerprint
from gadjax.errors import UserError
from gadjax.extensions import NO_EXTENSIONS, Extensions, check_extensions
from gadjax.models import lora
from gadjax.models.architecture import CAUSAL_LM
from gadjax.models.hf_files import pooling_of
from gadjax.models.weights import check_weights, read_hf_config, resolve_model
from gadjax.parallel import mesh as meshes
from gadjax.progress import ProgressCallback
from gadjax.setup.blueprint import Blueprint, make_networks


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup(Blueprint):
    """A checked run, before any weights are loaded."""

    student: pathlib.Path  # the directory of its checkpoint
    tokenizer: ChatTokenizer
    train: Dataset
    heldout: Dataset | None
    hf_configs: dict[str, dict[str, Any]]  # the config.json of "generator" and "discriminator"
    discriminator_init: pathlib.Path | None  # the directory of its checkpoint; None if it grows from the generator


def prepare_run(
    config: ConfigDict,
    progress: ProgressCallback = lambda what, done, total: None,
    extensions: Extensions = NO_EXTENSIONS,
) -> Setup:
    """Checks the config, the models' configs, the headers of their weights, the tokenizer, the data and the mesh.

    Args:
      config: the config as the user gave it.
      progress: called as the data is tokenised.
      extensions: what the user adds in Python.

    Raises:
      UserError: the first of these that cannot work.
    """
    config = resolve(config)
    check_extensions(extensions, config)
    mesh = meshes.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    # Read the architectures. Without a checkpoint of its own, the discriminator has the student's.
    student = resolve_model(config.student)
    model_config, hf_config = read_hf_config(student)
    other, hf_discriminator, init = None, hf_config, None
    if named := discriminator_checkpoint(config):
        init = resolve_model(named)
        other_config, hf_discriminator = read_hf_config(init)
        other = other_config, str(init)
        is_language_model = hf_discriminator["architectures"][0].endswith(CAUSAL_LM)
        if config.discriminator.kind == "likelihood" and not is_language_model:
            raise UserError(
                f"config.discriminator.init {named} is a {hf_discriminator['architectures'][0]}, but "
                "config.discriminator.kind=likelihood needs a causal language model: name one"
            )
        if not is_language_model and (own := pooling_of(hf_discriminator, named)) != config.discriminator.pooling:
            raise UserError(
                f"config.discriminator.init {named} was trained with discriminator.pooling={own}, and "
                f"config.discriminator.pooling is {config.discriminator.pooling}: set it to {own}"
            )
        if needs_trained_discriminator(config) and config.discriminator.kind == "score" and is_language_model:
            raise UserError(
                f"config.discriminator.init {named} is a causal language model, whose new scalar head nothing trains "
                "while config.gad.train_discriminator is off: name an exported discriminator, or add the warmup stage"
            )
    networks = make_networks(config, mesh, (model_config, str(student)), other)
    # Load the tokenizer. Both networks must read the same token ids.
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
    # Check the headers of all weights that the run will load, so that no later stage fails.
    if not config.random_init:
        whole = networks["generator"].abstract_params()
        check_weights(student, model_config, lora.frozen(whole) or whole)
    if init is not None and not config.discriminator.random_init:
        discriminator = networks["discriminator"]
        check_weights(init, discriminator.config, discriminator.abstract_params(), missing=("score",))
    # Tokenise the data, and check that it fits the networks.
    train = _dataset(config, tokenizer, "train", progress)
    heldout = _dataset(config, tokenizer, "heldout", progress) if config.data.heldout else None
    if config.data.heldout_share:
        train, heldout = split(train, config.data.heldout_share)
    setup = Setup(
        config=config,
        mesh=mesh,
        **networks,
        eos_ids=tokenizer.eos_ids,
        pad_id=tokenizer.pad_id,
        prompt_width=max(data.prompt_width for data in (train, heldout) if data),
        heldout_prompts=min(config.evaluation.prompts or len(heldout), len(heldout)) if heldout else 0,
        student=student,
        tokenizer=tokenizer,
        train=train,
        heldout=heldout,
        hf_configs={"generator": hf_config, "discriminator": hf_discriminator},
        discriminator_init=init,
        extensions=extensions,
    )
    _check_sizes(setup)
    return setup


def stage_lengths(setup: Setup) -> dict[str, int]:
    """The number of steps of each stage of the run."""
    per_epoch = setup.train.steps_per_epoch(setup.config.batch_size)
    sections = {stage: setup.config[stage] for stage in setup.config.stages}
    return {stage: s.steps or max(1, round(s.epochs * per_epoch)) for stage, s in sections.items()}


def _check_sizes(setup: Setup) -> None:
    """Checks that data, networks and config fit each other."""
    config, tokens = setup.config, setup.tokenizer.vocab_size
    if len(setup.train) < config.batch_size:
        raise UserError(
            f"{config.data.train} has {len(setup.train)} usable rows, fewer than config.batch_size {config.batch_size}"
        )
    folds = config.evaluation.two_sample_folds
    if folds and setup.heldout:
        different = len(same_prompt([setup.heldout.prompts[i] for i in range(setup.heldout_prompts)]))
        if different < folds:
            raise UserError(
                f"config.evaluation.two_sample_folds is {folds}, more than the held-out prompts to measure on, "
                f"{different} of which differ: lower it, or give more data and a higher config.evaluation.prompts"
            )
    places = (setup.generator, setup.student), (setup.discriminator, setup.discriminator_init or setup.student)
    for model, where in places:
        model.config.check_length(setup.sequence_length, str(where))
        if tokens > model.config.vocab_size:
            raise UserError(f"{where} has {model.config.vocab_size} embeddings but its tokenizer {tokens} tokens")
    if setup.row_length() < setup.sequence_length:
        raise UserError(
            f"config.row_length {setup.row_length()} is shorter than the longest prompt and "
            f"config.data.max_response_length together, {setup.sequence_length}: raise it, or leave it at 0"
        )
    if "warmup" in config.stages:
        check_warmup_length(config, stage_lengths(setup)["warmup"])


def _dataset(config: ConfigDict, tokenizer: ChatTokenizer, split: str, progress: ProgressCallback) -> Dataset:
    """The tokenised rows of a split, "train" or "heldout"."""
    path = config.data[split]
    return prepare(
        read_rows(path, config.data.columns, optional=split == "heldout"),
        tokenizer,
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.data.max_response_length,
        cut_answers=config.data.cut_answers,
        source_name=f"config.data.{split} {path}",
        progress=functools.partial(progress, f"tokenising data.{split}"),
    )
