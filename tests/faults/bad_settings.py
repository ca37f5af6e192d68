"""Bad configs, flags and topologies."""

from __future__ import annotations

from typing import Any

from tests.faults.bad_input import BadInput


def run(name: str, message: str, *arguments: str, **fields: Any) -> BadInput:
    """Training with these fields of the config, and further arguments."""
    return BadInput(name, message, lambda p: p.run(*arguments, **fields))


def flags(name: str, message: str, command: str, *more: str, **given: Any) -> BadInput:
    """Another command with these flags."""
    return BadInput(name, message, lambda p: p.command(command, *more, **given))


def plan(name: str, message: str, topology: str) -> BadInput:
    """A plan for this topology."""
    return flags(name, message, "plan", topology=topology)


CONFIGS = [
    BadInput("no config", "no config: give --config=demo", lambda p: ["gadjax.train"]),
    BadInput(
        "no such config", "--config cannot be read: .*nowhere.py", lambda p: ["gadjax.train", "--config=nowhere.py"]
    ),
    BadInput(
        "a config that is a folder", "--config cannot be read: ", lambda p: ["gadjax.train", f"--config={p.folder}"]
    ),
    run(
        "a field that is none",
        r"a --config\.FIELD is not in the config: .*batchsize.*see docs/config\.md",
        batchsize=8,
    ),
    run("a section's field that is none", r"a --config\.FIELD is not in the config: .*\blr\b", gad__lr=1),
    run("text for a number", r"--config\.batch_size=many", batch_size="many"),
    run("a fraction for an integer", r"--config\.batch_size=1\.5", batch_size=1.5),
    run("a word for a switch", r"--config\.random_init=maybe", random_init="maybe"),
    run("a value for a section", r"config\.gad", gad=1),
    run("no student", r"config\.student is empty: give it on the command line", student=""),
    run("no data", r"config\.data\.train is empty: give it", data__train=""),
    run(
        "an unknown stage",
        r"config\.stages is .*'gan'.*: name one or more of seqkd, soda, warmup, gad",
        stages="warmup,gan",
    ),
    run("stages in another order", r"the order is seqkd, soda, warmup, gad", stages="gad,seqkd"),
    run("a stage twice", "each stage runs once", stages="gad,gad"),
    run(
        "a choice that is none",
        r"config\.discriminator\.loss is 'hinge': choose one of bt, ce",
        discriminator__loss="hinge",
    ),
    run("a batch of nothing", r"config\.batch_size is 0: it must be at least 1", batch_size=0),
    run("a temperature of 0", r"config\.rollout\.temperature is 0\.0: it must be above 0", rollout__temperature=0.0),
    run("a beta of 1", r"config\.optimizer\.b1 is 1\.0: it must be at least 0 and below 1", optimizer__b1=1.0),
    run(
        "a rate that is not a number",
        r"config\.gad\.generator_learning_rate is nan: it must be",
        gad__generator_learning_rate="nan",
    ),
    run("an infinite clip", r"config\.gad\.clip is inf: it must be a finite number", gad__clip="inf"),
    run(
        "a seed that JAX would cut",
        r"config\.seed is 4294967296: it must be at least 0 and below 4294967296",
        seed=2**32,
    ),
    run(
        "an integer beyond 64 bits",
        r"config\.row_length is 1000000000000000000000: it must be below",
        row_length=10**21,
    ),
    run("one fold", r"two_sample_folds is 1: give at least 2, or 0", evaluation__two_sample_folds=1),
    run("no length", r"config\.gad has no length: set config\.gad\.steps or", gad__steps=0, gad__epochs=0.0),
    run("one sample", r"config\.rollout\.num_samples is 1: warmup and gad compare samples", rollout__num_samples=1),
    run(
        "nothing to train",
        r"config\.warmup trains nothing",
        warmup__train_generator=False,
        warmup__train_discriminator=False,
    ),
    run("no discriminator", "stage gad has no discriminator", gad__train_discriminator=False, stages="gad"),
    run(
        "a share of 1",
        "replay_share must lie between 0 and 1",
        discriminator__replay_size=8,
        discriminator__replay_share=1.0,
    ),
    run("a store too small", r"replay_size 1 has no room for the 2 samples", discriminator__replay_size=1),
    run(
        "micro-batches that do not divide",
        "is not divisible by config.micro_batches.generator 3",
        micro_batches__generator=3,
    ),
    run("minibatches that do not divide", r"config\.gad\.ppo_minibatches \*", gad__ppo_minibatches=5),
    run("adapters on random weights", "adapters leave the student's weights as they are", lora__rank=4),
    run(
        "arguments that are not JSON", r"config\.data\.template_args is not JSON \(Expecting", data__template_args="{x"
    ),
    run(
        "arguments that nest too deep",
        r"config\.data\.template_args is not JSON \(nested too deep",
        data__template_args="[" * 100_000,
    ),
    run("arguments that are a list", r"config\.data\.template_args must be a JSON object", data__template_args="[1]"),
    run(
        "an argument that is no number", r"template_args is not JSON \(NaN is no JSON", data__template_args='{"a": NaN}'
    ),
    run(
        "an argument called messages",
        r"--config\.data\.template_args: 'messages' cannot be",
        data__template_args='{"messages": 1}',
    ),
    run(
        "a date that is none",
        r"the chat template's date is '2024-02-30'; expected YYYY-MM-DD",
        data__template_date="2024-02-30",
    ),
    run("a mesh of other devices", r"does not cover the 8 devices", mesh__data=3),
    run(
        "a batch that the mesh does not divide", r"config\.batch_size 12 is not divisible by the 8 parts", batch_size=12
    ),
    run("prompts that are all too long", "have prompts of more than 4 tokens", data__max_prompt_length=4),
    run("rows too short", r"config\.row_length 20 is shorter than the longest prompt", row_length=20),
    BadInput(
        "a workdir in a file",
        r"--workdir .*file/run cannot be written",
        lambda p: p.run(f"--workdir={p.file('file', '')}/run"),
    ),
]

FLAGS = [
    run("an unknown flag", "Unknown command line flag 'work'", "--work=x"),
    run("an argument without a flag", "unexpected argument 'train.parquet': flags are written", "train.parquet"),
    run("an argument that is not Unicode", r"is not valid UTF-8", "--workdir=\udcff"),
    run("a profile of words", "--profile=first names no steps", "--profile=first"),
    run("a profile backwards", "--profile=9-3 names no steps", "--profile=9-3"),
    run("half of what processes need", "--num_processes and --process_id missing: give", "--coordinator=host:1"),
    run("a process beyond the last", "--process_id=2", "--coordinator=host:1", "--num_processes=2", "--process_id=2"),
    flags("a temperature below 0", "temperature.*-1", "generate", temperature=-1),
    flags(
        "a temperature that is no number", "--temperature=nan: expected a finite number", "generate", temperature="nan"
    ),
    flags("an infinite budget", "--budget=inf: expected a finite number", "collect", budget="inf"),
    flags("a top_p above 1", r"top_p.*1\.5", "generate", top_p=1.5),
    flags(
        "a seed beyond 64 bits",
        r"--seed=9223372036854775808: expected a number of at most 64 bits",
        "generate",
        seed=2**63,
    ),
    flags(
        "no room for the answer",
        "sequences may reach .* lower --max_response_length",
        "generate",
        max_response_length=120,
    ),
    flags("an unknown dtype", "--?dtype.*float16", "generate", dtype="float16"),
    flags(
        "a folder that is not there",
        "--out=.*: there is no folder /nowhere; make it first",
        "generate",
        out="/nowhere/o.jsonl",
    ),
    flags("an out that is a folder", "--out=.* is a folder; give the name of a file", "generate", out="/tmp"),
    flags("a file for answers of another kind", r"o\.csv: the name must end in \.parquet", "collect", out="/tmp/o.csv"),
    flags("a budget without prices", "--budget needs --input_price and --output_price", "collect", budget=1),
    flags("fields that are not JSON", "--request_fields: not JSON", "collect", request_fields="{"),
    flags("fields that nest too deep", "--request_fields: not JSON", "collect", request_fields="[" * 100_000),
    flags("a field that a flag has", "--request_fields: n has a flag of its own", "collect", request_fields='{"n": 2}'),
    flags("the same answer many times", "--n=2 with --temperature=0 pays 2 times", "collect", n=2, temperature=0),
    flags("an address that is none", "--base_url=http://host:abc/v1: ", "collect", base_url="http://host:abc/v1"),
    flags("a model without a name", "--models=x: expected NAME=VALUE", "evaluate", models="x"),
    flags("two models of a name", "the name 'a' is there twice", "evaluate", models="a=api:x,a=api:y"),
    flags("a name with a slash", "the name '../a' must begin with a letter or digit", "evaluate", models="../a=api:x"),
    flags("a price that is a word", "--input_price=a", "evaluate", input_price="a"),
    flags("a seed below 0", "--seed=-1: a number of at least 0", "evaluate", seed=-1),
    flags("a test of one fold", "--two_sample_folds=1: a number of at least 2", "evaluate", two_sample_folds=1),
    BadInput("no flags", "must have a value", lambda p: ["gadjax.score"]),
]

TOPOLOGIES = [
    BadInput("no topology", "no topology: give --topology=", lambda p: ["gadjax.plan", f"--config={p.config}"]),
    plan("an unknown chip", "--topology=v7:8 is not known: write CHIP:SHAPE", "v7:8"),
    plan("a chip without a shape", "--topology=h100 is not known", "h100"),
    plan("no devices", "--topology=cpu:0 is not known", "cpu:0"),
    plan("a negative shape", "--topology=v5p:2x-2x1 is not known", "v5p:2x-2x1"),
    plan("digits of another script", "is not known", "h100:1x1٢"),
    plan("a shape of too few dimensions", "--topology=v5p:8 has 1 dimensions: write it like v5p:2x4x4", "v5p:8"),
    plan(
        "a shape of too many dimensions", "--topology=h100:1x2x4 has 3 dimensions: write it like h100:2x8", "h100:1x2x4"
    ),
    plan("more virtual devices than a process can have", "--topology=cpu:1000000: at most", "cpu:1000000"),
    plan("more GPUs than there are", "--topology=h100:9999999x8: at most", "h100:9999999x8"),
    plan("a slice that is not sold", "--topology=v5p:3x5x7: the compiler knows no such topology", "v5p:3x5x7"),
]
