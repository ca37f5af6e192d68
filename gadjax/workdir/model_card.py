"""The README.md of an export: what the model is, how it was trained, and its held-out figures."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from gadjax.config.check import uses_discriminator
from gadjax.setup.blueprint import discriminator_head
from gadjax.stage_table import heldout_cells, heldout_columns, stage_title
from gadjax.version import __version__

_METHOD = "Generative Adversarial Distillation ([arXiv 2511.10643](https://arxiv.org/abs/2511.10643))"
_KINDS = {  # the hub's pipeline tag, and what the model is
    "generator": ("text-generation", f"A language model distilled from a teacher's answers with gadjax by {_METHOD}."),
    "discriminator": (
        "token-classification",
        f"The discriminator of a model distilled with gadjax by {_METHOD}. Its score of a prompt and a response is the "
        "logit at the response's last token, which ends the turn. A higher score is more like the teacher's answers. "
        "It was trained against this one student and is no general reward model.",
    ),
}
_LIKELIHOOD = (
    "text-generation",
    f"The discriminator of a model distilled with gadjax by {_METHOD}. It is a language model φ of the teacher's "
    "answers. Its score of an answer is log φ(answer) - log q(answer), where q is the student that wrote it. A higher "
    "score is more like the teacher's answers. It is meant for this one student and is no general reward model.",
)
_STAGES = {
    "seqkd": "cross entropy on the teacher's answers",
    "soda": "DPO, which prefers the teacher's answers to samples of the model as it entered the stage",
    "warmup": "cross entropy on the teacher's answers, while a discriminator learns to tell samples from them",
    "gad": "policy gradient (GRPO) on the discriminator's scores of samples, while the discriminator goes on learning",
}
_TERMS = """\
## Terms of use

This model learned from the answers of another model, the teacher. Providers limit what their models' answers
may be used for, and some forbid training other models on them. Before you use or share this model, read the
teacher's terms and the licence of the model that it started from."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LOCAL = re.compile(r"[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:")  # the start of a path outside the working folder


def model_card(
    *,
    kind: str,
    base_model: str,
    config: Mapping[str, Any],
    data_counts: Mapping[str, int],
    figures: Mapping[str, Mapping[str, float]],
    stages: Mapping[str, int],
) -> str:
    """The card as Markdown, with the front matter that the Hugging Face hub reads.

    Of a path of this machine only the last part is shown. The card states no licence, as that depends on the base model
    and the teacher's terms.

    Args:
      kind: "generator" or "discriminator".
      base_model: hub id or path of the weights that the network started from; "" if they were random.
      config: the run's resolved config.
      data_counts: counts of rows by what was counted, such as "training rows" or "held-out rows".
      figures: held-out figures by stage, from `gadjax.metrics.read_heldout`.
      stages: number of steps of each stage, in order.
    """
    from huggingface_hub import ModelCardData

    likelihood = kind == "discriminator" and discriminator_head(config) == "lm"
    pipeline, about = _LIKELIHOOD if likelihood else _KINDS[kind]
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        base_model=base_model if _HUB_ID.fullmatch(base_model) and not pathlib.Path(base_model).exists() else None,
        tags=["gadjax", "jax", "distillation", kind],
    )
    start = f"`{_without_folders(base_model)}`" if base_model else "random weights"
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {kind.capitalize()} distilled with gadjax",
        about,
        f"## Training\n\nStarted from {start}.{_adapters(config)}",
        "\n".join(f"{n}. {_stage(name, stages[name], config)}" for n, name in enumerate(stages, start=1)),
        "\n".join(f"- {name}: {count:,}" for name, count in data_counts.items()),
        _figures_section(figures),
        _TERMS,
        _config_section(config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _adapters(config: Mapping[str, Any]) -> str:
    lora = config.get("lora", {})
    if not lora.get("rank"):
        return ""
    return (
        f" Adapters (LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}) were trained on it. They are merged into "
        "these weights; `adapter/` holds them by themselves, in the format of PEFT."
    )


def _stage(stage: str, steps: int, config: Mapping[str, Any]) -> str:
    networks = ("generator", "discriminator")
    shown = networks if uses_discriminator(config, stage) else networks[:1]
    frozen = [network for network in shown if not config.get(stage, {}).get(f"train_{network}", True)]
    note = f" (here the {' and '.join(frozen)} stayed as it was)" if frozen else ""
    return f"{stage_title(stage)}, {steps:,} {'step' if steps == 1 else 'steps'}: {_STAGES[stage]}{note}."


def _figures_section(figures: Mapping[str, Mapping[str, float]]) -> str:
    if not figures:
        return ""
    columns = heldout_columns(figures)
    titles = [" ".join(column.title.split()) for column in columns]
    rows = [["stage", *titles], ["---", *("---:" for _ in titles)]]
    rows += [[stage_title(stage), *heldout_cells(values, columns)] for stage, values in figures.items()]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    notes = "\n".join(f"- {title}: {column.meaning}" for title, column in zip(titles, columns, strict=True))
    about = "On the run's held-out prompts, as last measured in each stage."
    return f"## Held-out figures\n\n{about}\n\n{table}\n\n{notes}"


def _config_section(config: Mapping[str, Any]) -> str:
    text = json.dumps(_clean(config), indent=2, ensure_ascii=False, default=str)
    # The fence must be longer than any run of backticks in the config, which a chat template may have.
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    heading = f"<summary>The run's config (gadjax {__version__})</summary>"
    return f"<details>\n{heading}\n\n{fence}json\n{text}\n{fence}\n\n</details>"


def _clean(value: Any) -> Any:
    """The config's value, with paths of this machine shortened."""
    if isinstance(value, Mapping):
        return {name: _clean(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(part) for part in value]
    return _without_folders(value) if isinstance(value, str) else value


def _without_folders(text: str) -> str:
    """The last part of a path of this machine; any other text unchanged."""
    if not _LOCAL.match(text):
        return text
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] or text
