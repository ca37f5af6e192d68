"""The two updates of a GAD step in torch and float32, as a careful user of transformers writes them.

Rows are sorted by length and cut into buckets that are trimmed to their longest. Padding stands on the right, where
causal attention never looks, so no mask is needed. The head sees response positions only, D's only the last.
"""

import time

import torch
import transformers
from protocol import serve


class Side:
    """Generator, discriminator and reference, and their optimizers."""

    def load(self, models, settings):
        """Loads Hugging Face directories.

        settings: learning rates, betas, eps, weight_decay, clip_norm, temperature, kl_coefficient, bucket (rows).
        """
        causal, classifier = transformers.AutoModelForCausalLM, transformers.AutoModelForTokenClassification
        self.generator = causal.from_pretrained(models["generator"], dtype=torch.float32)
        self.discriminator = classifier.from_pretrained(models["discriminator"], dtype=torch.float32)
        self.reference = causal.from_pretrained(models["reference"], dtype=torch.float32).requires_grad_(False)
        for model in (self.generator, self.discriminator, self.reference):
            model.eval()  # no dropout
        self.settings = settings
        moments = dict(betas=settings["betas"], eps=settings["eps"], weight_decay=settings["weight_decay"], fused=True)
        rate = settings["learning_rate"]
        self.of_generator = torch.optim.AdamW(self.generator.parameters(), lr=rate, **moments)
        self.of_discriminator = torch.optim.AdamW(self.discriminator.parameters(), lr=rate, **moments)

    def step(self, batch, samples):
        """Runs D's update and G's, from lists. The fields are those of gadjax's trainer."""
        start = time.perf_counter()
        metrics = self._update(batch, samples)
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": sum(map(sum, samples["lengths"])), "metrics": metrics}

    def _update(self, batch, samples):
        trim = lambda rows, lengths: [row[:n] for row, n in zip(rows, lengths, strict=True)]  # noqa: E731
        prompts = trim(batch["prompt"], batch["prompt_length"])
        teacher = trim(batch["teacher"], batch["teacher_length"])
        drawn = [trim(*group) for group in zip(samples["tokens"], samples["lengths"], strict=True)]
        count = len(drawn[0])
        of_samples = [(p, response) for p, group in zip(prompts, drawn, strict=True) for response in group]

        scores = self._scores([*zip(prompts, teacher, strict=True), *of_samples])
        of_teacher, of_student = scores[: len(prompts)], scores[len(prompts) :].view(-1, count)
        loss = -torch.nn.functional.logsigmoid(of_teacher[:, None] - of_student).mean()
        loss.backward()
        metrics = {"discriminator/loss": loss.item()}
        metrics["discriminator/grad_norm"] = self._apply(self.discriminator, self.of_discriminator)

        rewards = of_student.detach()
        advantages = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-6)
        metrics |= self._policy(of_samples, advantages.flatten())
        metrics["generator/grad_norm"] = self._apply(self.generator, self.of_generator)
        return metrics

    def _scores(self, pairs):
        """D's scores at the last token of each sequence, in order. All graphs are kept for one backward pass."""
        parts, order = [], []
        for numbers, ids in self._buckets(pairs):
            hidden = self.discriminator.model(input_ids=ids, use_cache=False).last_hidden_state
            last = torch.tensor([len(pairs[i][0]) + len(pairs[i][1]) - 1 for i in numbers])
            parts.append(self.discriminator.score(hidden[torch.arange(len(numbers)), last])[:, 0])
            order += numbers
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(parts)[back]

    def _policy(self, pairs, advantages):
        """Runs the backward passes of the clipped policy gradient with the k3 KL, one mean over all tokens."""
        total = sum(len(response) for _, response in pairs)
        losses, kls = 0.0, 0.0
        for numbers, ids in self._buckets(pairs):
            with torch.no_grad():
                before = self._logprobs(self.reference, pairs, numbers, ids)
            logprobs = self._logprobs(self.generator, pairs, numbers, ids)
            of_tokens = torch.cat([advantages[i].expand(len(pairs[i][1])) for i in numbers])
            ratio = torch.exp(logprobs - logprobs.detach())
            policy = torch.maximum(-of_tokens * ratio, -of_tokens * ratio.clamp(0.8, 1.2))
            policy = torch.where(of_tokens < 0, torch.minimum(policy, -of_tokens * 3.0), policy)
            difference = (before - logprobs).clamp(-20, 20)
            kl = (difference.exp() - difference - 1).clamp(-10, 10)
            loss = (policy + self.settings["kl_coefficient"] * kl).sum() / total
            loss.backward()
            losses, kls = losses + loss.item(), kls + kl.sum().item() / total
        return {"generator/loss": losses, "generator/kl": kls}

    def _logprobs(self, model, pairs, numbers, ids):
        """[tokens] log-probs of all response tokens of a bucket, row after row."""
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        spans = [(len(pairs[i][0]), len(pairs[i][0]) + len(pairs[i][1])) for i in numbers]
        before = torch.cat([hidden[row, first - 1 : end - 1] for row, (first, end) in enumerate(spans)])
        target = torch.cat([ids[row, first:end] for row, (first, end) in enumerate(spans)])
        logits = model.lm_head(before) / self.settings["temperature"]
        return torch.log_softmax(logits, dim=-1).gather(1, target[:, None])[:, 0]

    def _buckets(self, pairs):
        """Buckets (numbers, tokens) of rows of similar lengths, padded on the right to their longest row."""
        order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
        size = self.settings["bucket"]
        for numbers in (order[start : start + size] for start in range(0, len(order), size)):
            rows = [torch.tensor(pairs[i][0] + pairs[i][1]) for i in numbers]
            yield numbers, torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _apply(self, model, optimizer):
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), self.settings["clip_norm"])
        optimizer.step()
        optimizer.zero_grad()
        return norm.item()


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    side = Side()
    serve(load=side.load, step=side.step)
