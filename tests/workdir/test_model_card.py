"""An export's card: front matter that the hub reads, figures and config, and no folder of the machine."""

import json
import re

import pytest
from huggingface_hub import ModelCard

from gadjax.models.families import FAMILIES
from gadjax.workdir.model_card import model_card

pytestmark = pytest.mark.quick

CONFIG = {
    "student": "/home/ada/models/Qwen2.5-7B-Instruct",
    "stages": ("warmup", "gad"),
    "data": {
        "train": "~/secret/answers-*.parquet",
        "heldout": "data/test.parquet",
        "chat_template": "{{ '```' }}",
    },
    "gad": {"kl_coefficient": 0.001},
}
ARGUMENTS = dict(
    kind="generator",
    base_model="Qwen/Qwen2.5-7B-Instruct",
    config=CONFIG,
    data_counts={"training rows": 192014, "over-long prompts dropped": 12},
    figures={
        "before": {"nll": 2.0},
        "gad": {"nll": 1.5, "two_sample": 0.8, "two_sample_low": 0.7, "two_sample_high": 0.9},
    },
    stages={"warmup": 800, "gad": 1600},
)


def card(**changes):
    return model_card(**{**ARGUMENTS, **changes})


def front_matter(text):
    return ModelCard(text).data.to_dict()


def test_front_matter_of_a_generator():
    assert front_matter(card()) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "tags": ["gadjax", "jax", "distillation", "generator"],
    }


def test_a_reward_model_of_which_transformers_has_no_class():
    """The lines define it, and compile."""
    for name, family in FAMILIES.items():
        text = card(kind="discriminator", turn_end=7, family=family)
        lines = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
        compile(lines, "card", "exec")
        own = f"GenericForTokenClassification, transformers.{name}PreTrainedModel" in lines
        assert own == (name in ("Olmo2", "Olmo3", "Gemma3"))
        assert ("AutoModelForTokenClassification" in lines) != own and ".from_pretrained(path)" in lines


def test_adapters_are_named():
    assert "LoRA" not in card()
    text = card(config=CONFIG | {"lora": {"rank": 8, "alpha": 16.0}})
    assert "Adapters (LoRA, rank 8, alpha 16) were trained on it." in text and "`adapter/`" in text
    assert "LoRA" not in card(config=CONFIG | {"lora": {"rank": 0, "alpha": 16.0}})


def test_front_matter_of_a_discriminator():
    text = card(kind="discriminator")
    front = front_matter(text)
    assert front["pipeline_tag"] == "token-classification"
    assert front["tags"] == ["gadjax", "jax", "reward-model", "discriminator"]
    assert "last token" in text, "how to read its score"


def test_a_discriminator_is_a_reward_model_and_not_distilled():
    for kind in ("score", "likelihood"):
        text = card(kind="discriminator", config=CONFIG | {"discriminator": {"kind": kind}})
        assert "A reward model, trained as the discriminator of a student that gadjax distilled" in text
        assert "# Reward model of a gadjax run" in text and "distillation" not in front_matter(text)["tags"]
    assert "A language model distilled from a teacher's answers" in card()


def test_how_to_use_it():
    """The lines themselves run in tests/test_export.py."""
    assert "AutoModelForCausalLM.from_pretrained(path)" in card()
    assert "values[-1]" in card(kind="discriminator", turn_end=7)
    mean = card(kind="discriminator", turn_end=7, config=CONFIG | {"discriminator": {"pooling": "mean"}})
    assert "[7]" in mean and "values.mean()" in mean and "the mean of the logits" in mean
    likelihood = card(kind="discriminator", turn_end=7, config=CONFIG | {"discriminator": {"kind": "likelihood"}})
    assert "python -m gadjax.score --model=." in likelihood and "from_pretrained" not in likelihood


@pytest.mark.parametrize(
    ("teachers", "sentence"),
    [
        ((), "It learned from the answers of a teacher in `answers-*.parquet`."),
        (("gpt-5",), "It learned from the answers of `gpt-5` in `answers-*.parquet`."),
        (tuple("abcde"), "It learned from the answers of `a`, `b`, `c`, 2 more in `answers-*.parquet`."),
    ],
)
def test_the_teacher_and_its_data_are_named(teachers, sentence):
    assert sentence in card(teachers=teachers)


def test_several_files_of_data_are_named():
    config = CONFIG | {"data": {"train": ["/secret/a.parquet", "b.parquet"]}}
    assert "answers of a teacher in `a.parquet, b.parquet`." in card(config=config)


def test_the_students_licence_and_base_are_in_the_front_matter():
    origin = {"license": "other", "license_name": "qwen", "license_link": "LICENSE", "base_model": "Qwen/Qwen2.5-7B"}
    front = front_matter(card(base_model="/models/student", origin=origin))
    assert {name: front[name] for name in origin} == origin
    assert front_matter(card(origin=origin))["base_model"] == "Qwen/Qwen2.5-7B-Instruct", "the student itself"


@pytest.mark.parametrize(
    ("base_model", "start"),
    [
        ("/home/ada/models/Qwen2.5-7B-Instruct", "Started from `Qwen2.5-7B-Instruct`."),
        ("~/models/mine/", "Started from `mine`."),
        ("../models/mine", "Started from `mine`."),
        ("C:\\models\\mine", "Started from `mine`."),
        ("mine", "Started from `mine`."),
        ("", "Started from random weights."),
    ],
)
def test_a_base_model_that_is_no_hub_id(base_model, start):
    text = card(base_model=base_model)
    assert "base_model" not in front_matter(text)
    assert start in text


def test_a_folder_that_looks_like_a_hub_id(tmp_path, monkeypatch):
    (tmp_path / "assets" / "student").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in front_matter(card(base_model="assets/student"))


def test_without_the_students_no_licence_is_claimed_and_the_teachers_terms_are_named():
    text = card()
    assert "license" not in front_matter(text)
    assert "teacher's terms" in " ".join(text.split())


def test_how_it_was_trained():
    text = card()
    assert "1. warmup, 800 steps: cross entropy" in text
    assert "2. GAD, 1,600 steps: policy gradient" in text
    assert "- training rows: 192,014\n- over-long prompts dropped: 12\n" in text


def test_an_ablation_is_named():
    text = card(config={"gad": {"train_discriminator": False, "train_generator": True}})
    (gad,) = (line for line in text.splitlines() if line.startswith("2. GAD"))
    assert gad.endswith("(here the discriminator stayed as it was).")
    assert "stayed" not in text.replace(gad, "")


def test_figures_are_the_terminals():
    lines = card().splitlines()
    (header,) = (line for line in lines if line.startswith("| stage"))
    assert header == "| stage | NLL | two-sample accuracy |"
    assert "| before | 2.000 | – |" in lines
    assert "| GAD | 1.500 | 0.800 ± 0.100 |" in lines


def test_without_figures_there_is_no_table():
    text = card(figures={}, data_counts={})
    assert "|" not in text
    assert "\n\n\n" not in text


def test_the_config_is_whole_but_for_the_machines_folders():
    text = card()
    assert "/home" not in text and "ada" not in text and "secret" not in text
    block = re.search(r"(`{3,})json\n(.*)\n\1\n\n</details>", text, re.DOTALL).group(2)
    assert json.loads(block) == {
        "student": "Qwen2.5-7B-Instruct",
        "stages": ["warmup", "gad"],
        "data": {
            "train": "answers-*.parquet",
            "heldout": "data/test.parquet",
            "chat_template": "{{ '```' }}",
        },
        "gad": {"kl_coefficient": 0.001},
    }
