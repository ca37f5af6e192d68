"""tunix's side of its benchmarks: its Llama with our weights, its vanilla sampler, and its GRPO learner."""

import queue
import threading
import time
import warnings
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from protocol import serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import ModelConfig
from tunix.models.llama3.params import create_model_from_safe_tensors
from tunix.rl import rl_cluster
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig


class Numbers:
    """A tokenizer of texts such as "17 4 1023", so that a prompt is given by its ids. Its EOS is never sampled."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def encode(self, text, **kwargs):
        return [int(part) for part in text.split()]

    def decode(self, ids, **kwargs):
        return " ".join(map(str, ids))

    def bos_id(self):
        return None

    def eos_id(self):
        return self.vocabulary

    def pad_id(self):
        return 0


def make_mesh():
    """A mesh of one device, with the axis names of tunix's Llama."""
    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def load_model(path, fields, mesh):
    """Loads a Llama from a Hugging Face directory in float32. `fields`: its config.json. The RoPE base is fixed."""
    if fields["rope_theta"] != 1_000_000:
        raise ValueError("tunix's Llama computes rope_theta 1000000 only")
    config = ModelConfig(
        num_layers=fields["num_hidden_layers"],
        vocab_size=fields["vocab_size"],
        embed_dim=fields["hidden_size"],
        hidden_dim=fields["intermediate_size"],
        num_heads=fields["num_attention_heads"],
        head_dim=fields["head_dim"],
        num_kv_heads=fields["num_key_value_heads"],
        rope_theta=fields["rope_theta"],
        norm_eps=fields["rms_norm_eps"],
        weight_tying=fields["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(path, config, mesh, dtype=jnp.float32)


class SamplerSide:
    """The vanilla sampler."""

    def load(self, path, fields, cache):
        """cache: positions of the key-value cache."""
        mesh = make_mesh()
        self.model = load_model(path, fields, mesh)
        sizes = {"num_layers": fields["num_hidden_layers"], "num_kv_heads": fields["num_key_value_heads"]}
        cache = CacheConfig(cache_size=cache, head_dim=fields["head_dim"], **sizes)
        self.sampler = Sampler(self.model, Numbers(fields["vocab_size"]), cache)

    def run(self, prompts, limit, temperature):
        """Runs one turn. Returns seconds and tokens; at temperature 0 (greedy) also the tokens' ids."""
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        how = {"temperature": temperature, "top_p": 1.0} if temperature else {}
        start = time.perf_counter()
        out = self.sampler(texts, limit, max_prompt_length=len(prompts[0]), return_logprobs=True, **how)
        seconds = time.perf_counter() - start
        answers = [np.asarray(row).tolist() for row in out.tokens]
        if any(len(answer) != limit for answer in answers):
            raise RuntimeError(f"tunix made {sorted({len(answer) for answer in answers})} tokens a row, not {limit}")
        turn = {"seconds": seconds, "tokens": limit * len(answers)}
        return turn if temperature else turn | {"answers": answers}


class LearnerSide:
    """The GRPO learner. Its data iterator holds it at the end of every step."""

    def __init__(self):
        self.requests, self.replies = queue.Queue(), queue.Queue()

    def load(self, path, reference, fields, shape, settings):
        """
        reference: the directory of the KL's other policy. shape: prompts, samples, prompt, response. settings:
        learning_rate, betas, eps, weight_decay, clip_norm, temperature, kl_coefficient, micro_batch (prompts; None:
        tunix's own choice, all at once).
        """
        mesh = make_mesh()
        b1, b2 = settings["betas"]
        adamw = optax.adamw(settings["learning_rate"], b1, b2, settings["eps"], weight_decay=settings["weight_decay"])
        training = rl_cluster.RLTrainingConfig(
            actor_optimizer=optax.chain(optax.clip_by_global_norm(settings["clip_norm"]), adamw),
            eval_every_n_steps=10**9,
            max_steps=10**9,
            mini_batch_size=shape["prompts"],
            train_micro_batch_size=settings["micro_batch"] or shape["prompts"],
        )
        rollout = RolloutConfig(
            max_tokens_to_generate=shape["response"],
            max_prompt_length=shape["prompt"],
            kv_cache_size=shape["prompt"] + shape["response"],
            temperature=settings["temperature"],
            return_logprobs=True,
        )
        roles = (rl_cluster.Role.ACTOR, rl_cluster.Role.REFERENCE, rl_cluster.Role.ROLLOUT)
        cluster = rl_cluster.RLCluster(
            actor=load_model(path, fields, mesh),
            reference=load_model(reference, fields, mesh),
            tokenizer=Numbers(fields["vocab_size"]),
            cluster_config=rl_cluster.ClusterConfig(
                role_to_mesh=dict.fromkeys(roles, mesh), training_config=training, rollout_config=rollout
            ),
        )
        method = GRPOConfig(
            num_generations=shape["samples"],
            beta=settings["kl_coefficient"],
            kl_loss_mode="low_var_kl",  # k3
            loss_agg_mode="token-mean",
        )
        self.cluster = cluster
        self.tokens = shape["prompts"] * shape["samples"] * shape["response"]
        self.learner = GRPOLearner(rl_cluster=cluster, algo_config=method, reward_fns=_rewards)
        threading.Thread(target=self._train, daemon=True).start()

    def step(self, prompts):
        """Runs one turn: a step on these prompts."""
        self.requests.put([" ".join(map(str, prompt)) for prompt in prompts])
        reply = self.replies.get()
        if isinstance(reply, Exception):
            raise reply
        return {"seconds": reply, "tokens": self.tokens}

    def close(self):
        """Ends the learner's threads."""
        self.requests.put(None)

    def _train(self):
        try:
            self.learner.train(self._batches())
        except Exception as error:  # the request that waits says it
            self.replies.put(error)

    def _batches(self):
        """Batches for the learner. Asking for the next batch means that the last one is done; the clock then stops."""
        while prompts := self.requests.get():
            start = time.perf_counter()
            yield {"prompts": np.array(prompts)}
            jax.block_until_ready(nnx.state(self.cluster.actor_trainer.model))
            self.replies.put(time.perf_counter() - start)


def _rewards(prompts, completions, **kwargs):
    """Rewards from 0 to 1 that differ and mean nothing: a checksum of the text."""
    return [zlib.crc32(completion.encode()) / 2**32 for completion in completions]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sampler, learner = SamplerSide(), LearnerSide()
    serve(load_sampler=sampler.load, sample=sampler.run, load_learner=learner.load, step=learner.step)
    learner.close()
