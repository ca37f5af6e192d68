"""Makes a student from a teacher: copies a checkpoint without some of its layers.

    python benchmarks/prune_layers.py --model=HuggingFaceTB/SmolLM2-135M-Instruct --keep=0-9,28,29 --out=/tmp/pruned

Such a student has much to relearn; `configs/smollm2_135m.py` trains one.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np

from gadjax.data.tokenizer import load_tokenizer
from gadjax.errors import UserError, run_command
from gadjax.files import expand
from gadjax.models.model import Model
from gadjax.models.save import save_pretrained
from gadjax.models.weights import load_params, read_hf_config, resolve_model


def parse_layers(text: str, count: int) -> list[int]:
    """The layers, ascending, that a text such as "0-9,28" names in a model of `count` layers."""
    try:
        parts = [part.partition("-") for part in text.split(",")]
        layers = [layer for first, _, last in parts for layer in range(int(first), int(last or first) + 1)]
    except ValueError:
        raise UserError(f"--keep={text}: write it as numbers and ranges, such as 0-9,28,29") from None
    if layers != sorted(set(layers)) or not layers or layers[-1] >= count:
        raise UserError(f"--keep={text}: name layers of 0 to {count - 1} in ascending order, each once")
    return layers


def prune(model: str, keep: str, out: pathlib.Path) -> Model:
    """Writes the copy, with the tokenizer, and returns its architecture."""
    path = resolve_model(model)
    config, hf_config = read_hf_config(path)
    layers = parse_layers(keep, config.num_layers)
    params = load_params(path, config, Model(config).abstract_params())
    params["layers"] = jax.tree.map(lambda stacked: stacked[np.array(layers)], params["layers"])
    config = dataclasses.replace(config, num_layers=len(layers))
    hf_config = {**hf_config, "num_hidden_layers": len(layers)}
    if hf_config.get("layer_types"):
        hf_config["layer_types"] = [hf_config["layer_types"][layer] for layer in layers]
    generation = path / "generation_config.json"
    with tempfile.TemporaryDirectory() as tokenizer:
        load_tokenizer(path).save(tokenizer)
        save_pretrained(
            out,
            params,
            config,
            hf_config,
            kind="generator",
            tokenizer_dir=pathlib.Path(tokenizer),
            generation_config=json.loads(generation.read_text()) if generation.exists() else None,
        )
    return Model(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face directory or hub id")
    parser.add_argument("--keep", required=True, help="layers to keep, such as 0-9,28,29")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="directory to write")
    arguments = parser.parse_args()
    model = prune(arguments.model, arguments.keep, expand(arguments.out))
    print(f"{arguments.out}: {model.config.num_layers} layers, {model.num_params():,} parameters")


if __name__ == "__main__":
    run_command(main)
