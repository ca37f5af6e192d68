"""A workdir's facts, and its networks as Hugging Face directories."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from gadjax.errors import UserError
from gadjax.metrics import read_heldout
from gadjax.model_card import model_card
from gadjax.models.config import ModelConfig
from gadjax.models.export import save_pretrained
from gadjax.models.model import Model, Params
from gadjax.trainer.setup import Setup, stage_lengths

NETWORKS = {"generator": "lm", "discriminator": "score"}  # and the head of each


def prepare_workdir(setup: Setup, workdir: pathlib.Path) -> None:
    """Makes the workdir with all that later commands read: they need the workdir alone.

    `config.json` (resolved), `run.json` (the networks' Hugging Face configs and the data's counts), `tokenizer/`.

    Raises:
      UserError: it cannot be written, or holds checkpoints of other networks than this run's.
    """
    facts = {
        "hf_configs": setup.hf_configs,
        "generation_config": _generation_config(setup),
        "data": _data_counts(setup),
        "stages": stage_lengths(setup),
    }
    if (workdir / "run.json").exists() and any((workdir / "checkpoints").glob("*")):
        _, before = read_workdir(workdir)
        for network, hf_config in setup.hf_configs.items():
            if before["hf_configs"][network] != hf_config:
                raise UserError(
                    f"--workdir {workdir} holds a run whose {network} is another model than this config's: use another "
                    "--workdir"
                )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(workdir / "config.json", setup.config.to_dict())
        _write_json(workdir / "run.json", facts)
        setup.tokenizer.save(workdir / "tokenizer")
    except OSError as error:
        raise UserError(f"--workdir {workdir} cannot be written: {error.strerror}") from None


def read_workdir(workdir: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The run's config and facts."""
    try:
        return tuple(json.loads((workdir / name).read_text()) for name in ("config.json", "run.json"))
    except OSError as error:
        raise UserError(
            f"--workdir {workdir} is not the workdir of a run: no {pathlib.Path(error.filename).name}"
        ) from None


def network_model(facts: dict[str, Any], network: str) -> Model:
    """The architecture of a run's generator or discriminator."""
    config = ModelConfig.from_hf(facts["hf_configs"][network], f"run.json, {network}")
    return Model(config, NETWORKS[network])


def export_network(workdir: pathlib.Path, network: str, params: Params, out: pathlib.Path) -> None:
    """Writes a network as a directory that transformers loads: weights, configs, tokenizer and model card."""
    config, facts = read_workdir(workdir)
    card = model_card(
        kind=network,
        base_model="" if config["random_init"] else config["student"],
        config=config,
        data_counts=facts["data"],
        figures=read_heldout(workdir / "metrics.jsonl"),
        stages=facts["stages"],
    )
    save_pretrained(
        out,
        params,
        network_model(facts, network).config,
        facts["hf_configs"][network],
        kind=network,
        tokenizer_dir=workdir / "tokenizer",
        generation_config=facts["generation_config"],
        model_card=card,
        dtype=config["export_dtype"],
    )


def _data_counts(setup: Setup) -> dict[str, int]:
    splits = {"training": setup.train, "held-out": setup.heldout}
    return {
        f"{split} rows, {name.replace('_', ' ')}": count
        for split, data in splits.items()
        if data is not None
        for name, count in dataclasses.asdict(data.counts).items()
    }


def _generation_config(setup: Setup) -> dict[str, Any]:
    """The student's own, with the ids that ended its responses here."""
    path = setup.student / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else {}
    return own | {"eos_token_id": list(setup.tokenizer.eos_ids), "pad_token_id": setup.tokenizer.pad_id}


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
