"""Does the GAD stage of the demo help? Three arms at equal generator updates, over seeds.

    python benchmarks/demo_seeds.py --seeds=0,1,2 --teacher=DIR --out=/tmp/demo_seeds

- gad: the demo as it is.
- seqkd: its SeqKD stage goes on for as many updates as its GAD stage makes.
- control: its GAD stage without the game: cross entropy alone, at that stage's learning rate, from fresh moments.

All arms of a seed share the SeqKD stage's weights; afterwards each sees the data in an order of its own. Figures are
measured on all held-out prompts. Finished runs are read, not repeated. Prints the figures of every run, and each
figure's mean difference to the other arms with its range over seeds; writes results.json.

With --teacher, the folder of the model that gave the answers (SmolLM2-135M-Instruct), the teacher itself judges too:
`reverse_kl` is E_q[log q(y) - log p(y)] in nats a response, over one sample to each held-out prompt. q is the student
at temperature 1, p the teacher at the temperature and with the system prompt of the collection. The two have different
tokenizers: p is computed on the student's text in the teacher's tokens, so the figure is an estimate.
"""

import argparse
import json
import pathlib
import statistics

import jax
import numpy as np

from configs import demo
from gadjax.data.packing import pack
from gadjax.data.schema import read_rows
from gadjax.distill.forward import per_sequence, response_logprobs
from gadjax.rollout.chat_model import Network, load_network
from gadjax.rollout.engine import Engine
from gadjax.rollout.sampler import Sampling
from gadjax.train import run

FIGURES = ("nll", "rouge_l", "ngram_f1_1", "ngram_f1_2", "length_mean", "two_sample", "reverse_kl")
SYSTEM = "You write one short sentence in simple words for a small child."  # of the collection, as its temperature
TEMPERATURE = 0.5
BATCH = 16


def arms(seed: int):
    """The configs of a seed's runs, by arm."""
    gad = demo.get_config()
    gad.seed = seed
    gad.evaluation.prompts = 0
    gad.eval_every = 0
    seqkd, control = gad.copy_and_resolve_references(), gad.copy_and_resolve_references()
    seqkd.stages = ("seqkd",)
    seqkd.seqkd.steps = gad.seqkd.steps + gad.gad.steps
    control.stages = ("seqkd", "warmup")
    control.warmup.steps = gad.gad.steps
    control.warmup.generator_learning_rate = gad.gad.generator_learning_rate
    control.warmup.train_generator = True
    control.warmup.train_discriminator = False
    control.warmup.discriminator_only_steps = 0
    return {"gad": gad, "seqkd": seqkd, "control": control}


def reverse_kl(student: Network, teacher: Network, heldout: str, limit: int) -> float:
    """E_q[log q - log p] in nats a response; see the module's docstring."""
    rows = read_rows(heldout)
    chats = [rows.messages(i) for i in range(len(rows))]
    own = student.tokenizer
    sampling = Sampling(limit, tuple(own.eos_ids), own.pad_id, temperature=1.0)
    answers = Engine(student.model, student.mesh).generate(student.params, own.prompt_ids_batch(chats), sampling)
    texts = [own.decode(answer.tokens) for answer in answers]
    prompts = teacher.tokenizer.prompt_ids_batch([[{"role": "system", "content": SYSTEM}, *chat] for chat in chats])
    responses = teacher.tokenizer.response_ids_batch(texts, [answer.ended for answer in answers])
    longest = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))

    @jax.jit
    def sequence_logprobs(params, packed):
        logprobs, _ = response_logprobs(teacher.model, params, packed, temperature=TEMPERATURE, chunk=64)
        return per_sequence(logprobs, packed)

    total = sum(float(answer.logprobs.sum()) for answer in answers)
    for start in range(0, len(texts), BATCH):
        chosen = np.arange(start, min(start + BATCH, len(texts)))
        filled = np.resize(chosen, BATCH)  # whole batches: few shapes
        packed = pack([prompts[i] for i in filled], [responses[i] for i in filled], row_length=longest)
        packed = jax.tree.map(lambda leaf: leaf[0], packed)
        total -= float(sequence_logprobs(teacher.params, packed)[: len(chosen)].sum())
    return total / len(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated")
    parser.add_argument("--teacher", help="folder of SmolLM2-135M-Instruct; without it reverse_kl is left out")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder of the runs and results.json")
    arguments = parser.parse_args()
    teacher = load_network(arguments.teacher, "lm") if arguments.teacher else None

    results = {}
    for seed in map(int, arguments.seeds.split(",")):
        for arm, config in arms(seed).items():
            workdir = arguments.out / f"{arm}-{seed}"
            figures = run(config, workdir)[config.stages[-1]]
            if teacher:
                student = load_network(str(workdir / "export" / "generator"), "lm")
                figures["reverse_kl"] = reverse_kl(
                    student, teacher, config.data.heldout, config.data.max_response_length
                )
            results[f"{arm}-{seed}"] = figures
    (arguments.out / "results.json").write_text(json.dumps(results, indent=2) + "\n")

    shown = [figure for figure in FIGURES if all(figure in figures for figures in results.values())]
    print("run".ljust(10), *(name.rjust(12) for name in shown))
    for name, figures in results.items():
        print(name.ljust(10), *(f"{figures[figure]:12.4f}" for figure in shown))
    seeds = [name.split("-")[1] for name in results if name.startswith("gad-")]
    for figure in shown:
        for arm in ("seqkd", "control"):
            gaps = [results[f"gad-{seed}"][figure] - results[f"{arm}-{seed}"][figure] for seed in seeds]
            print(f"{figure}: GAD - {arm} {statistics.mean(gaps):+.4f} ({min(gaps):+.4f} to {max(gaps):+.4f})")


if __name__ == "__main__":
    main()
