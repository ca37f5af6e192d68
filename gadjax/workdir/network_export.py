"""Writes a run's network as a Hugging Face directory."""

from __future__ import annotations

import pathlib

from gadjax.config.check import discriminator_checkpoint, field_value
from gadjax.metrics import read_heldout, read_stages
from gadjax.models import lora
from gadjax.models.adapters import Adapters, merged_params
from gadjax.models.model import Params
from gadjax.models.save import save_pretrained
from gadjax.models.weights import resolve_model
from gadjax.workdir.facts import Network, network_model, read_workdir
from gadjax.workdir.model_card import model_card


def export_network(workdir: pathlib.Path, network: Network, params: Params, step: int, out: pathlib.Path) -> None:
    """Writes a network as a directory that transformers loads: weights, configs, tokenizer and model card.

    Adapters are merged into the student's weights, which are read again, and are also written to `adapter/` for PEFT.

    Args:
      workdir: the run's folder.
      network: which network.
      params: the network's trained parameters.
      step: the step of the run that they come from. The card shows nothing of later steps.
      out: the directory to write.
    """
    config, facts = read_workdir(workdir)
    model, metrics, adapters = network_model(config, facts, network), workdir / "metrics.jsonl", None
    if model.config.lora:
        adapters = Adapters(params, model.config.lora, config["student"])
        base = resolve_model(config["student"])
        params = merged_params(base, model.config, lora.frozen(model.abstract_params()), adapters)
    # A discriminator that is grown from the generator started from the student's weights, which may be random.
    named = discriminator_checkpoint(config) if network == "discriminator" else None
    random = config["random_init"] if named is None else field_value(config, "discriminator.random_init")
    card = model_card(
        kind=network,
        base_model="" if random else named or config["student"],
        config=config,
        data_counts=facts["data"],
        figures=read_heldout(metrics, last_step=step),
        stages=read_stages(metrics, last_step=step),
        teachers=facts.get("teachers", ()),  # runs of earlier versions lack both
        origin={} if random else facts.get("origins", {}).get(network, {}),
        turn_end=facts["generation_config"]["eos_token_id"][0],
        family=model.config.family,
    )
    save_pretrained(
        out,
        params,
        model.config,
        facts["hf_configs"][network],
        kind=network,
        adapters=adapters,
        tokenizer_dir=workdir / "tokenizer",
        generation_config=facts["generation_config"],
        model_card=card,
        pooling=field_value(config, "discriminator.pooling") or "last",  # runs of earlier versions lack the field
        dtype=config["export_dtype"],
    )
