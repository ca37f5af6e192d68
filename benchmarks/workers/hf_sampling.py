"""Hugging Face's side of the sampling benchmark: `generate` in float32, batches in the order of arrival."""

import time

import torch
import transformers
from protocol import serve


class TargetLengths(transformers.StoppingCriteria):
    """Ends each row at a length of its own, with one comparison a step instead of looking for an EOS."""

    def __init__(self, prompt, lengths):
        self.ends = torch.tensor(lengths) + prompt

    def __call__(self, input_ids, scores, **kwargs):
        return input_ids.shape[1] >= self.ends


class Side:
    """A loaded model."""

    def load(self, path):
        """Loads a causal language model, without an EOS."""
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        config = self.model.generation_config
        config.eos_token_id, config.pad_token_id = None, 0

    def run(self, prompts, limit, temperature, batch, cache, lengths=None):
        """Runs one turn: a call of `generate` for each batch, which ends with its longest row.

        prompts: token lists of one length. cache: "dynamic" or "static". lengths: of the rows; None: `limit`.
        """
        start = time.perf_counter()
        made = 0
        for first in range(0, len(prompts), batch):
            ids = torch.tensor(prompts[first : first + batch])
            targets = lengths and lengths[first : first + batch]
            made += self.generate(ids, limit, temperature, cache, targets)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(lengths) if lengths else made}

    def generate(self, ids, limit, temperature, cache, targets):
        """Calls `generate` once. Returns the number of tokens, padding included."""
        stop = [TargetLengths(ids.shape[1], targets)] if targets else []
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=limit,
                stopping_criteria=transformers.StoppingCriteriaList(stop),
                **({"cache_implementation": "static"} if cache == "static" else {}),
            )
        made = out.shape[1] - ids.shape[1]
        expected = max(targets) if targets else limit
        if made != expected:
            raise RuntimeError(f"generate made {made} tokens a row, not {expected}")
        return made * len(ids)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    side = Side()
    serve(load=side.load, run=side.run)
