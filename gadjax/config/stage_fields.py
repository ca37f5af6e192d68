"""The fields of the discriminator and of the stages; `gadjax.config.fields` says how a field is declared."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gadjax.config.section import Section


class DiscriminatorFields(Section):
    """The discriminator and its updates."""

    init: str = ""
    """Where the discriminator starts. "": as a copy of the student. "generator": as a copy of the generator when the
    first stage with a discriminator begins (after a seqkd that teaches none, for example), which helps if the student
    starts from random weights. Otherwise a directory or hub id: a causal LM of any size with the student's tokenizer,
    or an exported discriminator."""
    random_init: bool = False
    """Start from random weights. The folder that init names then needs only config.json and a tokenizer."""
    kind: Literal["score", "likelihood"] = "score"
    """What the discriminator is. "score": a scalar head on a language model, the paper's. "likelihood": a language
    model φ that keeps its head; its score of an answer is beta * Σ_t (log φ(y_t) - log π(y_t)), where π is what
    `baseline` names. It needs no new head, knows what SeqKD taught it, and says what each token adds."""
    beta: float = Field(1.0, gt=0)
    """Factor of a likelihood discriminator's score."""
    baseline: Literal["reference", "policy"] = "policy"
    """π in the loss of a likelihood discriminator: the generator as it entered the stage ("reference"), or as it is now
    ("policy"). With "policy", beta equal to bt_temperature and no replay, the loss is least where φ is the teacher."""
    pooling: Literal["last", "mean"] = "last"
    """The score of a scalar head: its value at the response's last token, or the mean of its values at all response
    tokens."""
    sft_coefficient: float = Field(0.0, ge=0)
    """Weight of the cross entropy on the teacher's answers in the updates of a likelihood discriminator, which keeps it
    a language model."""
    loss: Literal["bt", "ce"] = "bt"
    """Bradley-Terry ("bt") or cross entropy ("ce", the paper's ablation)."""
    bt_temperature: float = Field(1.0, gt=0)
    """Divides the score difference in the Bradley-Terry loss."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer steps on each rollout. Rewards are the scores before the first one."""
    replay_size: int = Field(0, ge=0)
    """Samples of past steps that are kept for the discriminator's updates; 0: none, otherwise at least
    rollout.num_samples."""
    replay_share: float = 0.5
    """Share of past samples in each update when replay_size is above 0; between 0 and 1."""


class StageFields(Section):
    """What every stage has."""

    steps: int = 0
    """Length of the stage in steps; 0: epochs decides."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The stage's learning rates: constant, or falling to 0 at the stage's end along a line or half a cosine. If they
    fall, steps gives the length. A run that continues with another length goes on along the new curve."""
    rise_steps: int = Field(0, ge=0)
    """Steps at the stage's start over which the learning rates rise linearly; 0: they start at their full height."""


class SeqKDFields(StageFields):
    """Stage seqkd: cross entropy on the teacher's answers."""

    epochs: float = 3.0
    """Length of the stage in passes over the training data; used if steps is 0."""
    generator_learning_rate: float = 5e-6
    """Learning rate of the generator."""
    train_discriminator: bool = False
    """Train a likelihood discriminator by the same cross entropy on the same answers."""
    discriminator_learning_rate: float = 5e-6
    """Learning rate of the discriminator."""


class SodaFields(StageFields):
    """Stage soda: DPO (arXiv 2305.18290) that prefers the teacher's answer to one sample of the student as it entered
    the stage, as in SODA (arXiv 2604.03873). It has no discriminator."""

    epochs: float = 1.0
    """Length of the stage in passes over the training data; used if steps is 0."""
    generator_learning_rate: float = 1e-6
    """Learning rate of the generator."""
    beta: float = Field(0.1, gt=0)
    """Factor of the log-ratios in the DPO loss: the higher, the closer the student stays to where it started."""


class WarmupFields(StageFields):
    """Stage warmup: cross entropy for the generator, while the discriminator learns on the generator's samples."""

    epochs: float = 1.0
    """Length of the stage in passes over the training data; used if steps is 0."""
    generator_learning_rate: float = 1e-6
    """Learning rate of the generator."""
    discriminator_learning_rate: float = 1e-6
    """Learning rate of the discriminator."""
    discriminator_only_steps: int = Field(10, ge=0)
    """Steps at the stage's start that update only the discriminator; without effect if train_discriminator is False."""
    train_generator: bool = True
    """False: the generator stays as it entered the stage (an ablation)."""
    train_discriminator: bool = True
    """False: the discriminator stays as it entered the stage (an ablation)."""


class GadFields(StageFields):
    """Stage gad: policy gradient on the discriminator's score, while the discriminator learns on the same samples."""

    epochs: float = 2.0
    """Length of the stage in passes over the training data; used if steps is 0."""
    generator_learning_rate: float = 1e-6
    """Learning rate of the generator."""
    discriminator_learning_rate: float = 1e-6
    """Learning rate of the discriminator."""
    train_generator: bool = True
    """False: the generator stays as it entered the stage (an ablation)."""
    train_discriminator: bool = True
    """False: the discriminator stays as it entered the stage (the paper's off-policy ablation)."""
    credit: Literal["sequence", "token"] = "sequence"
    """What a token answers for: the reward of its whole response, the same for all of its tokens ("sequence"), or the
    rewards of itself and, discounted, of the tokens after it ("token"). A token's reward is the discriminator's value
    at it ("score") or beta * (log φ - log π) of it ("likelihood")."""
    discount: float = Field(0.0, ge=0, le=1)
    """Weight of the next token's reward in a token's, with token credit. 0: a token answers for itself alone."""
    reward: Literal["raw", "bounded"] = "raw"
    """A sample's reward: the discriminator's score ("raw"), or σ(its score - the teacher's score), between 0 and 1
    ("bounded", as in TextGAIL, arXiv 2004.13796). "bounded" needs sequence credit."""
    reward_baseline: Literal["reference", "policy"] = "policy"
    """π in the rewards of a likelihood discriminator; the choices mean what they mean for discriminator.baseline."""
    whitening: Literal["group", "batch", "running"] = "group"
    """The rewards that give the mean and the standard deviation by which a reward becomes an advantage: those of the
    prompt's samples (GRPO), of the batch, or of the stage so far."""
    reward_clip: float = Field(0.0, ge=0)
    """Advantages are clipped to plus and minus this many standard deviations; 0: not at all."""
    length_correction: bool = False
    """Subtract from each reward what its length explains: the slope of the rewards on the lengths within the groups of
    the batch, times the length's difference to its group's mean. It needs sequence credit."""
    demonstrations: float = Field(0.0, ge=0, le=1)
    """Share of the teacher's answers that join the samples in the policy's update, with an advantage of their own; 0:
    none."""
    demonstration_reward: float = Field(2.0, ge=0)
    """Advantage of the teacher's answers, in standard deviations; 0: that of their own score within their group, which
    needs sequence credit and group whitening."""
    demonstration_steps: int = Field(0, ge=0)
    """Steps over which the share falls to 0, linearly; 0: it stays."""
    clip: float = Field(0.2, gt=0)
    """The probability ratio is clipped to 1 - clip and 1 + clip."""
    dual_clip: float = Field(3.0, gt=1)
    """Bound of the loss where the advantage is negative, as a multiple of its size. With 1 or less, no token of
    negative advantage would have a gradient."""
    kl_coefficient: float = Field(1e-3, ge=0)
    """β: weight of the KL (k3) to the policy that entered this stage."""
    entropy_coefficient: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    ppo_minibatches: int = Field(1, ge=1)
    """Minibatches of a rollout; each is one optimizer step."""
    ppo_epochs: int = Field(1, ge=1)
    """Passes over the minibatches of a rollout."""
    aggregation: Literal["token_mean", "sequence_mean", "constant"] = "token_mean"
    """How token losses add up: one mean over the batch's tokens, a mean of the sequences' means, or sums divided by
    data.max_response_length (no bias by length)."""
    sft_coefficient: float = Field(0.0, ge=0)
    """Weight of an additional cross-entropy term on the teacher's answers."""
    importance_cap: float = Field(0.0, ge=0)
    """Cap of the importance weight between the log-probs of sampler and trainer; 0: no weight. It has no effect with
    more than one update on a rollout, where the ratio is already taken against the sampler's log-probs."""
