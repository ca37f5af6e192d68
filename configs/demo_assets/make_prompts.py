"""Writes the demo's prompts: 3,000 to train on and 500 held out, none in common.

    python configs/demo_assets/make_prompts.py --out=/tmp/demo_prompts

One wording over 16 adjectives x 16 animals x 16 places, 4,096 prompts in all: a domain so narrow that a student
of a few million random weights learns it in minutes, and too large to be learnt by heart. The order is that of the
ids' SHA-256, which is the same everywhere.
"""

import argparse
import hashlib
import itertools
import json
import pathlib

# All begin with a consonant, for "a".
ADJECTIVES = [
    "brave",
    "busy",
    "cheerful",
    "clever",
    "curious",
    "gentle",
    "happy",
    "hungry",
    "kind",
    "lazy",
    "lonely",
    "playful",
    "proud",
    "shy",
    "sleepy",
    "tiny",
]
ANIMALS = [
    "bear",
    "cat",
    "deer",
    "dog",
    "duck",
    "fox",
    "frog",
    "goat",
    "horse",
    "lion",
    "mouse",
    "owl",
    "pig",
    "rabbit",
    "turtle",
    "wolf",
]
PLACES = [
    "at night",
    "by a lake",
    "by the river",
    "in a barn",
    "in a cave",
    "in the forest",
    "in the garden",
    "in the grass",
    "in the rain",
    "in the snow",
    "in the sun",
    "near the sea",
    "on a boat",
    "on a farm",
    "on a hill",
    "under a tree",
]
TRAIN, HELDOUT = 3000, 500


def make_prompts() -> list[dict[str, str]]:
    """All prompts in their fixed random order, each with `id`, `prompt` and `category` (the animal)."""
    prompts = [
        {
            "id": f"{adjective}-{animal}-{place}".replace(" ", "-"),
            "prompt": f"Write one short sentence about a {adjective} {animal} {place}.",
            "category": animal,
        }
        for adjective, animal, place in itertools.product(ADJECTIVES, ANIMALS, PLACES)
    ]
    return sorted(prompts, key=lambda row: hashlib.sha256(row["id"].encode()).digest())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for train.jsonl and heldout.jsonl")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    prompts = make_prompts()
    parts = {"train": prompts[:TRAIN], "heldout": prompts[TRAIN : TRAIN + HELDOUT]}
    for name, rows in parts.items():
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{len(rows)} prompts: {out / name}.jsonl")


if __name__ == "__main__":
    main()
