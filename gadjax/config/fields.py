"""Every field of a run's config: its type, default, bounds, choices and description, declared once.

Those of the discriminator and of the stages are in `gadjax.config.stage_fields`, all others here.

The defaults are the paper's values (arXiv 2511.10643). All else is derived: the config `base`, the checks of
`gadjax.config.check`, the list in `python -m gadjax.train --help`, and the page docs/config.md. A string below a field
describes it. `ge` is "at least", `gt` "above", `lt` "below"; a `Literal` lists the choices.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any, Literal

from ml_collections import ConfigDict
from pydantic import Field
from pydantic.fields import FieldInfo

from gadjax.config.section import Section
from gadjax.config.stage_fields import DiscriminatorFields, GadFields, SeqKDFields, SodaFields, WarmupFields

Stage = Literal["seqkd", "soda", "warmup", "gad"]
Watchdog = Literal["discriminator", "length", "kl", "entropy", "throughput"]
BestFigure = Literal["nll", "rouge_l", "two_sample"]


class RunFields(Section):
    """A run needs at least `student` and `data.train`."""

    student: str = Field("", min_length=1)
    """The student: a Hugging Face directory or hub id, of one of the architectures that docs/train.md lists."""
    random_init: bool = False
    """Start from random weights. The student's directory then needs only config.json and a tokenizer."""
    stages: tuple[Stage, ...] = Field(("warmup", "gad"), min_length=1)
    """The stages that run, in this order: "seqkd" (cross entropy alone), "soda" (DPO on the teacher's answer and one
    sample of the student as it entered the stage), "warmup" (cross entropy, while the discriminator learns on the
    student's samples), "gad" (policy gradient on the discriminator's score). Separate them by commas."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seeds the order of the data, sampling, the new scalar head and random weights."""
    batch_size: int = Field(256, ge=1)
    """B: prompts in a step, summed over all devices and processes."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute dtype; "auto" is float32 on CPU and bfloat16 elsewhere. Master weights are always float32."""
    remat: Literal["none", "dots", "full"] = "full"
    """What a layer keeps for its backward pass: everything ("none": no rematerialization), the results of matrix
    products ("dots"), or only its input ("full")."""
    lora: LoraFields
    data: DataFields
    rollout: RolloutFields
    optimizer: OptimizerFields
    stop_on: tuple[Watchdog, ...] = ()
    """Watchdogs that stop the run, with a checkpoint and exit status 2, instead of only warning: "discriminator"
    (saturates: nearly always right, or never), "length" (answers run away), "kl" (explodes), "entropy" (collapses),
    "throughput" (drops). Separate them by commas. gadjax/trainer/watchdogs.py says what each looks for. While the
    warning stands, the run continues only if this field no longer names its watchdog."""
    discriminator: DiscriminatorFields
    seqkd: SeqKDFields
    soda: SodaFields
    warmup: WarmupFields
    gad: GadFields
    micro_batches: MicroBatchFields
    row_length: int = Field(0, ge=0)
    """Tokens of a packed row. 0: the width of the data's longest prompt plus data.max_response_length. On CPUs, 0 makes
    room for all responses to a prompt (including the teacher's where the discriminator reads them), so that the prompt
    is computed once, unless such a row exceeds micro_batches.tokens; but a few long rows pad a small batch more."""
    logprob_chunk: int = Field(1024, ge=1)
    """Response positions whose logits exist on a device at once."""
    mesh: MeshFields
    offload: OffloadFields
    eval_every: int = Field(50, ge=0)
    """Steps between measurements on held-out prompts. The end of each stage is measured as well; 0: only there."""
    evaluation: HeldoutFields
    checkpoint: CheckpointFields
    export_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of exported weights."""
    log: LogFields
    user: dict[str, Any] = Field({})
    """Values of your own, by names of your own, for your reward, loss or callbacks (docs/python.md). The config's file
    sets them, such as `config.user.bonus = 0.1`. config.json keeps them, and gadjax reads none of them."""


class LoraFields(Section):
    """LoRA: generator, discriminator and reference are adapters on every projection of one frozen student. The student
    is held once, in the compute dtype. Good learning rates are ten to a hundred times those of full training."""

    rank: int = Field(0, ge=0)
    """Rank of the adapters; 0 trains all parameters."""
    alpha: float = Field(32.0, gt=0)
    """The adapters' output is scaled by alpha / rank."""


class DataFields(Section):
    """Chats with answers, in any of the formats of docs/formats.md. Give a file, a folder, a glob, or a dataset:
    hf:OWNER/NAME/SPLIT (with /CONFIG before the split where it has several) or tfds:NAME/SPLIT."""

    train: str = Field("", min_length=1)
    """Teacher answers to learn from."""
    heldout: str = ""
    """Teacher answers to other prompts, on which the student is measured; "" measures nothing, unless heldout_share
    takes some of data.train."""
    heldout_share: float = Field(0.0, ge=0, lt=1)
    """Share of the prompts of data.train that are held out, where data.heldout is "". A hash of the prompt decides, so
    that the same prompts are held out in every run."""
    columns: str = ""
    """Columns of data.train, where their names do not tell what they hold: PROMPT,ANSWER, such as question_text,gold,
    or one column of chats that end with the answer. The same columns of data.heldout, if it has them. "": by their
    names."""
    max_prompt_length: int = Field(2048, ge=1)
    """Prompts of more tokens than this are dropped and counted."""
    max_response_length: int = Field(1536, ge=1)
    """T: tokens of a response. Longer teacher answers are cut here, without an EOS; sampling stops here."""
    cut_answers: Literal["drop", "keep"] = "drop"
    """What to do with rows that the API cut (finish_reason "length"): drop them, or train on them without an EOS."""
    chat_template: str = ""
    """A chat template (Jinja text, or a file's path) that replaces the tokenizer's own. Base models need one."""
    template_args: str = ""
    """Extra arguments of the template as a JSON object, such as '{"enable_thinking": false}' for Qwen3. The template of
    an exported student already contains the arguments of its run; these are added to them."""
    template_date: str = "2024-07-26"
    """The date that a template may print, YYYY-MM-DD. It is fixed so that a run means the same tomorrow."""


class RolloutFields(Section):
    """How training samples from the student: without top-p or top-k."""

    num_samples: int = Field(8, ge=1)
    """N: samples for each prompt in warmup and gad, where it is at least 2."""
    temperature: float = Field(0.8, gt=0)
    """Temperature of sampling. Log-probs are those of the scaled distribution."""
    slots: int = Field(0, ge=0)
    """Samples that are decoded at once, over all devices; 0: all samples of a step. When a sample ends, the next one
    takes its slot. Fewer slots need less memory for key-value caches, and more token steps. A multiple of the number of
    parts into which sampling's devices split a batch."""


class OptimizerFields(Section):
    """AdamW after a clip of the gradient's global norm, for generator and discriminator alike."""

    b1: float = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    b2: float = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    clip_norm: float = Field(0.2, gt=0)
    """Gradients with a larger global norm are scaled down to it."""
    max_skipped_steps: int = Field(10, ge=1)
    """A step whose gradient is not finite is skipped. The run stops after this many in a row."""


class MicroBatchFields(Section):
    """Slices of an update whose gradients are added up. They change memory and nothing else."""

    generator: int = Field(0, ge=0)
    """Slices of the generator's update; 0: as few as keep each device within micro_batches.tokens."""
    discriminator: int = Field(0, ge=0)
    """Slices of the discriminator's update; 0: as few as keep each device within micro_batches.tokens."""
    tokens: int = Field(32768, ge=1)
    """Tokens of rows that a device holds at once, where the number of slices is 0."""


class MeshFields(Section):
    """Devices along each axis of the mesh. One of data, fsdp and tensor may be -1: all the remaining devices."""

    data: int = 1
    """The batch is split over data * fsdp."""
    fsdp: int = -1
    """Weights and optimizer state are split over fsdp."""
    tensor: int = 1
    """Attention heads and the vocabulary are split over tensor."""
    decode_tensor: int = Field(0, ge=0)
    """Devices that share each weight while sampling: mesh.tensor times a divisor of mesh.fsdp. More devices need less
    memory for weights, and communicate at every token. 0: the fewest with which a device holds at most 4 GiB of
    weights, or as many as divide the key-value heads."""


class OffloadFields(Section):
    """What waits in the host's memory while it is not used."""

    optimizer: bool = False
    """The optimizers' moments."""
    networks: bool = False
    """The networks: discriminator and reference while sampling, generator and reference while the discriminator
    learns."""


class HeldoutFields(Section):
    """Measurements on held-out prompts during training."""

    prompts: int = Field(128, ge=0)
    """Held-out prompts to measure on; 0: all."""
    shown: int = Field(8, ge=0)
    """Answers that go to samples.jsonl at each measurement."""
    temperature: float = Field(0.0, ge=0)
    """Temperature of the held-out answers; 0 is greedy, as in the paper."""
    coverage: str = ""
    """A regular expression whose groups find, in a prompt, the words that an answer should name. At the end of each
    stage, `coverage` is the share of sampled answers that name all of them. "": not measured."""
    two_sample_folds: int = Field(0, ge=0)
    """Folds of the two-sample test at the end of each stage, in which a fresh classifier tells teacher from student; at
    least 2, or 0 to leave the test out."""
    two_sample_epochs: int = Field(3, ge=1)
    """The classifier's passes over the answers."""
    two_sample_learning_rate: float = Field(1e-5, gt=0)
    """The classifier's learning rate."""


class CheckpointFields(Section):
    """When and where the run is saved."""

    every: int = Field(100, ge=1)
    """Steps between checkpoints. The end of each stage is saved as well."""
    keep: int = Field(2, ge=1)
    """How many of the last checkpoints to keep."""
    keep_every: int = Field(0, ge=0)
    """Steps of the whole run that are multiples of this are saved and kept; 0: none."""
    best: Literal[BestFigure, ""] = ""
    """The held-out figure by which the best checkpoint is kept too, as WORKDIR@best: "nll" (lowest), "rouge_l"
    (highest) or "two_sample" (nearest to 0.5, measured at the ends of stages). A measurement that beats all earlier
    ones is saved at once. "": none."""
    directory: str = ""
    """Where checkpoints go: a folder, relative to the workdir, or gs://BUCKET/FOLDER (pip install gcsfs; not tried on a
    real bucket). It belongs to this run alone: a directory outside the workdir gets a file, workdir.txt, that names its
    owner; delete that file if the workdir was moved. "": WORKDIR/checkpoints."""


class LogFields(Section):
    """Where figures go besides metrics.jsonl."""

    tensorboard: bool = True
    """Write TensorBoard events into the workdir."""
    wandb_project: str = ""
    """Weights & Biases project (pip install wandb); "" logs nothing there."""


def _flat(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _flat(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


RunFields.model_rebuild()
FIELDS = dict(_flat(RunFields))  # by dotted name, such as "gad.clip"
STAGES: tuple[str, ...] = typing.get_args(Stage)
WATCHDOGS: tuple[str, ...] = typing.get_args(Watchdog)


def default_config() -> ConfigDict:
    """A config of every field with its default. It is locked, but for `user`: an unknown field cannot be set."""
    config: dict[str, Any] = {}
    for name, field in FIELDS.items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = field.default
    made = ConfigDict(config).lock()
    made.user.unlock()
    return made
