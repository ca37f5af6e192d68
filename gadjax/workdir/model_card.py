"""The README.md of an export: what the model is, how to use it, how it was trained, and its held-out figures."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gadjax.config.check import field_value, uses_discriminator
from gadjax.models.families import Family
from gadjax.setup.blueprint import discriminator_head
from gadjax.stage_table import heldout_cells, heldout_columns, stage_title
from gadjax.version import __version__

_METHOD = "Generative Adversarial Distillation ([arXiv 2511.10643](https://arxiv.org/abs/2511.10643))"
_GENERATOR = f"A language model distilled from a teacher's answers with gadjax by {_METHOD}."
_REWARD_MODEL = (
    f"A reward model, trained as the discriminator of a student that gadjax distilled by {_METHOD}. Its score of a "
    "prompt and a response is {score}. A higher score is more like the teacher's answers. It was trained against this "
    "one student and is no general reward model."
)
_SCORES = {
    "last": "the logit at the response's last token, which ends the turn",
    "mean": "the mean of the logits at the response's tokens, the last of which ends the turn",
}
_LIKELIHOOD = (
    f"A reward model, trained as the discriminator of a student that gadjax distilled by {_METHOD}. It is a language "
    "model φ of the teacher's answers. Its score of an answer is log φ(answer) - log q(answer), where q is the student "
    "that wrote it. A higher score is more like the teacher's answers. It is meant for this one student and is no "
    "general reward model."
)
_GENERATE = """\
import transformers

path = "."  # this folder, or its name on the hub
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
model = transformers.AutoModelForCausalLM.from_pretrained(path)
chat = [{"role": "user", "content": "What is distillation?"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(**prompt, max_new_tokens=256)[0, prompt["input_ids"].shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True))"""
_SCORE = """\
import torch
import transformers

path = "."  # this folder, or its name on the hub
tokenizer = transformers.AutoTokenizer.from_pretrained(path)
model = transformers.AutoModelForTokenClassification.from_pretrained(path)
chat = [{"role": "user", "content": "What is distillation?"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
answer = tokenizer("A small model learns from a large one.", add_special_tokens=False)["input_ids"] + [TURN_END]
with torch.no_grad():
    values = model(torch.tensor([prompt + answer])).logits[0, len(prompt) :, 0]
print(float(VALUE))"""
_AUTO_CLASS = "transformers.AutoModelForTokenClassification"
_OWN_CLASS = """\
from transformers.modeling_layers import GenericForTokenClassification


# transformers has no token classifier of this architecture.
class Discriminator(GenericForTokenClassification, transformers.FAMILYPreTrainedModel):
    config_class = type(transformers.AutoConfig.from_pretrained(path))


model = Discriminator"""
_VALUES = {"last": "values[-1]", "mean": "values.mean()"}
_SCORE_COMMAND = "python -m gadjax.score --model=. --generator=GENERATOR --data=answers.jsonl --out=scores.jsonl"
_SHOWN_TEACHERS = 3
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
    teachers: Sequence[str] = (),
    origin: Mapping[str, Any] | None = None,
    turn_end: int | None = None,
    family: Family | None = None,
) -> str:
    """The card as Markdown, with the front matter that the Hugging Face hub reads.

    Of a path of this machine only the last part is shown. The licence is that of the model that the network started
    from, if its own card states one; the card names the teacher's terms beside it.

    Args:
      kind: "generator" or "discriminator".
      base_model: hub id or path of the weights that the network started from; "" if they were random.
      config: the run's resolved config.
      data_counts: counts of rows by what was counted, such as "training rows" or "held-out rows".
      figures: held-out figures by stage, from `gadjax.metrics.read_heldout`.
      stages: number of steps of each stage, in order.
      teachers: names of the teachers, as the data gives them.
      origin: what the card of those weights says of their licence and base, from `gadjax.workdir.facts.origin`.
      turn_end: the token id that ends a response, for the lines that show how to score one.
      family: of the network, of which transformers may have no token classifier.
    """
    from huggingface_hub import ModelCardData

    reward_model, likelihood = kind == "discriminator", discriminator_head(config) == "lm"
    pooling = field_value(config, "discriminator.pooling") or "last"
    origin = origin or {}
    named = _HUB_ID.fullmatch(base_model) and not pathlib.Path(base_model).exists()
    front = ModelCardData(
        library_name="transformers",
        pipeline_tag="token-classification" if reward_model and not likelihood else "text-generation",
        base_model=base_model if named else origin.get("base_model"),
        tags=["gadjax", "jax", *(("reward-model",) if reward_model else ("distillation",)), kind],
        **{name: origin.get(name) for name in ("license", "license_name", "license_link")},
    )
    if not reward_model:
        title, about, usage = "Generator distilled with gadjax", _GENERATOR, ("python", _GENERATE)
    elif likelihood:
        title, about, usage = "Reward model of a gadjax run", _LIKELIHOOD, ("sh", _SCORE_COMMAND)
    else:
        title, about = "Reward model of a gadjax run", _REWARD_MODEL.format(score=_SCORES[pooling])
        lines = _SCORE.replace("TURN_END", str(turn_end)).replace("VALUE", _VALUES[pooling])
        if family and not family.classifies:
            own = _OWN_CLASS.replace("FAMILY", family.name)
            lines = lines.replace(f"model = {_AUTO_CLASS}", own)
        usage = ("python", lines) if turn_end is not None else None
    start = f"`{_without_folders(base_model)}`" if base_model else "random weights"
    parts = [
        f"---\n{front.to_yaml()}\n---",
        f"# {title}",
        about,
        f"## Usage\n\n```{usage[0]}\n{usage[1]}\n```" if usage else "",
        f"## Training\n\nStarted from {start}.{_adapters(config)}{_teacher(config, teachers)}",
        "\n".join(f"{n}. {_stage(name, stages[name], config)}" for n, name in enumerate(stages, start=1)),
        "\n".join(f"- {name}: {count:,}" for name, count in data_counts.items()),
        _figures_section(figures),
        _TERMS,
        _config_section(config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _teacher(config: Mapping[str, Any], teachers: Sequence[str]) -> str:
    """A sentence about whose answers the network learned from, and which file holds them."""
    file = _clean(config.get("data", {}).get("train", ""))
    file = ", ".join(file) if isinstance(file, list) else file
    shown = [f"`{name}`" for name in teachers[:_SHOWN_TEACHERS]]
    if more := len(teachers) - len(shown):
        shown.append(f"{more} more")
    by = f" of {', '.join(shown)}" if shown else " of a teacher"
    return f" It learned from the answers{by}" + (f" in `{file}`." if file else ".")


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
