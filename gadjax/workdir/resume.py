"""Whether a run may go on in a workdir: the run that began there must be the one that the config describes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

from etils import epath

from gadjax.config.check import field_value
from gadjax.data.tokenizer import vocabulary_fingerprint
from gadjax.errors import UserError, first_line
from gadjax.metrics import read_metrics
from gadjax.models.model import Model
from gadjax.models.weights import named_leaves
from gadjax.parallel import processes
from gadjax.setup.blueprint import abstract_state
from gadjax.setup.prepare import Setup
from gadjax.workdir.checkpoints import Checkpoints, is_damage
from gadjax.workdir.facts import digest, network_model, read_workdir, run_facts, weights_facts
from gadjax.workdir.place import check_place

# Fields that make a run this run. All others (lengths of stages, learning rates, evaluation, mesh, ...) may change
# where it continues. Files of data may lie elsewhere: their contents are compared.
_FIXED = (
    "student",
    "random_init",
    "lora.rank",
    "lora.alpha",
    "seed",
    "batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.cut_answers",
    "data.chat_template",
    "data.template_args",
    "data.template_date",
    "rollout.num_samples",
    "discriminator.init",
    "discriminator.replay_size",
)
# What runs were before gadjax had a field, of those whose absence says so.
_EARLIER = {"lora.rank": 0}
_SHOWN = 80  # characters of a value in a message


def check_processes(setup: Setup, workdir: pathlib.Path) -> None:
    """Refuses processes that would not train the same run.

    Raises:
      UserError: their workdirs, configs, networks, tokenizers or data differ, or the checkpoints that they see.
    """
    if processes.count() == 1:
        return
    with processes.together(), contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        parts = {"config": setup.config.to_dict(), **run_facts(setup), "workdir": str(workdir)}
        parts["checkpoints"] = checkpoints.steps()
    digests = {name: digest(json.dumps(value, sort_keys=True).encode()) for name, value in parts.items()}
    processes.check_equal(digests)


def check_workdir(setup: Setup, workdir: pathlib.Path, force: Callable[[str], None] | None = None) -> list[int]:
    """Refuses to continue the run that a workdir holds as another one; nothing is written.

    Args:
      force: shows a line; where it is given, the run goes on as another one if its checkpoint can be.

    Returns:
      Steps of its checkpoints, ascending.

    Raises:
      UserError: a field of `_FIXED`, the stages up to the one in progress, a network, the tokenizer or the data is not
        what it was; or with `force`, networks, tokenizer or stages are others than those of the checkpoint. Or its
        checkpoints are not where they should be, or another run's.
    """
    with contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        saved, stage, where = checkpoints.steps(), checkpoints.stage(), checkpoints.directory
    check_place(workdir, setup.config.checkpoint.directory, saved)
    if not saved:
        _check_never_saved(workdir, where)
        return []
    if stage is None:
        raise UserError(
            f"--workdir {workdir}: no checkpoint says where its run stood; restore {where} from a copy, or use another "
            "--workdir"
        )
    if not (workdir / "config.json").exists():
        raise UserError(f"{where} has checkpoints, but --workdir {workdir} is not that of their run: give that one")
    config, facts = read_workdir(workdir)
    # What else an earlier version of gadjax did not write down cannot have changed.
    fields = [field for field in _FIXED if _value(config, field) is not None]
    known = {name: value for name, value in run_facts(setup).items() if name in facts}
    changes = _changes(_identity(config, facts, fields), _identity(setup.config, known, fields))
    begun = config["stages"].index(stage) + 1
    if config["stages"][:begun] != list(setup.config.stages[:begun]):
        changes["config.stages"] = ",".join(config["stages"]), ",".join(setup.config.stages)
    if config["random_init"] and changes.keys() == {"config.student"}:
        return saved  # the same architecture and tokenizer in another folder, of which nothing else is read
    if changes:
        shown = "; ".join(f"{what}: {_shown(old)} → {_shown(new)}" for what, (old, new) in changes.items())
        if force is None:
            raise UserError(f"--workdir {workdir} holds another run ({shown}): use another --workdir, or --force")
        _check_can_go_on(setup, workdir, stage)
        force(
            f"warning: --force: the run in {workdir} goes on as another one ({shown}); steps count on, and the data "
            "from where its order would stand, had the run been like this from its start"
        )
    return saved


def _check_never_saved(workdir: pathlib.Path, where: epath.Path) -> None:
    """Refuses to begin anew, which empties the logs, where checkpoints are gone that there must have been."""
    if not (workdir / "config.json").exists() or not (workdir / "metrics.jsonl").exists():
        return
    config, _ = read_workdir(workdir)
    trained = [record for record in read_metrics(workdir / "metrics.jsonl") if record["kind"] == "train"]
    steps = [record["step"] for record in trained]
    # The ends of stages are saved too. A second save begins once the first is on disk; a run may be killed before.
    saves = (workdir / "export").exists() or len({record["stage"] for record in trained}) > 2
    if steps and (saves or steps[-1] > 2 * config["checkpoint"]["every"]):
        raise UserError(
            f"--workdir {workdir}: its metrics.jsonl tells of {steps[-1]} steps, but {where} has no checkpoint: mount "
            "its disk, or restore the folder; to begin anew use another --workdir, or delete metrics.jsonl"
        )


def _check_can_go_on(setup: Setup, workdir: pathlib.Path, stage: str) -> None:
    """Refuses what no force can continue: a checkpoint whose stage, ids or arrays mean nothing to this run."""
    if stage not in setup.config.stages:
        raise UserError(f"--force: the run of --workdir {workdir} is in stage {stage}, which config.stages leaves out")
    if vocabulary_fingerprint(workdir / "tokenizer") != setup.tokenizer.vocabulary_fingerprint():
        raise UserError(
            f"--force: the run of --workdir {workdir} has another tokenizer than {setup.student}, and token ids would "
            "mean other text: use another --workdir"
        )
    config, facts = read_workdir(workdir)
    weights = weights_facts(setup)
    moved = config["student"] != setup.config.student or facts.get("weights", weights) != weights
    if setup.generator.config.lora and moved:
        raise UserError(
            f"--force: the adapters of --workdir {workdir} stand on the weights of {config['student']} as they were "
            f"then, which its checkpoints do not hold, and config.student is {setup.config.student}: use another "
            "--workdir"
        )
    state = abstract_state(setup, stage)
    networks = {"generator": state.generator, "discriminator": state.discriminator}
    for network in (name for name, part in networks.items() if part is not None):
        before, now = (_computed(model) for model in (network_model(config, facts, network), getattr(setup, network)))
        for name, (old, new) in _changes(before, now).items():
            raise UserError(
                f"--force: the checkpoint of --workdir {workdir} is of other networks: the {network}'s {name} was "
                f"{_shown(old)}, and is {_shown(new)}: use another --workdir"
            )
    given = named_leaves({name: part.params for name, part in networks.items() if part is not None})
    with contextlib.closing(Checkpoints.of(workdir, setup.config)) as checkpoints:
        step = checkpoints.steps()[-1]
        try:
            found = checkpoints.shapes(step)
        except Exception as error:
            if not is_damage(error):
                raise
            raise UserError(
                f"--force: the checkpoint of step {step} in --workdir {workdir} is damaged ({first_line(error)}): run "
                "once without --force, which goes on from the one before"
            ) from error
    for name, (old, new) in _changes(found, {name: leaf.shape for name, leaf in given.items()}).items():
        raise UserError(
            f"--force: the checkpoint of --workdir {workdir} is of other networks, as {name} shows ({old} → {new}): "
            "use another --workdir"
        )


def _computed(model: Model) -> dict[str, Any]:
    """All that a network's values depend on, but for its parameters; another precision or remat may go on with them."""
    fields = dataclasses.asdict(model.config)
    return {name: value for name, value in fields.items() if name not in ("dtype", "remat")}


def _identity(config: Any, facts: dict[str, Any], fields: list[str]) -> dict[str, Any]:
    """What makes a run what it is, named for messages."""
    flat = {f"config.{field}": _value(config, field) for field in fields}
    for network, hf_config in facts["hf_configs"].items():
        flat |= {f"{network}'s {name}": value for name, value in hf_config.items()}
    flat |= {f"{network}'s weights": value for network, value in facts.get("weights", {}).items()}
    flat |= {"tokenizer and chat template": facts.get("tokenizer")} | facts["data"]
    return flat | {f"text of the {split} data": value for split, value in facts.get("contents", {}).items()}


def _value(config: Any, field: str) -> Any:
    value = field_value(config, field)
    return _EARLIER.get(field) if value is None else value


def _changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    old, new = (json.loads(json.dumps(side)) for side in (old, new))  # tuples as JSON has them
    names = dict.fromkeys([*old, *new])
    return {name: (old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)}


def _shown(value: Any) -> str:
    """On one line, and short: a chat template can be pages long."""
    text, half = repr(value), _SHOWN // 2
    return text if len(text) <= _SHOWN else f"{text[:half]}…{text[-half:]}"
