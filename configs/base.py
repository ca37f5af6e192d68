"""Every field of a run, with the paper's values (arXiv 2511.10643). Other configs start from here and override.

Any field can be set on the command line: --config.gad.generator_learning_rate=3e-6 --config.stages=warmup,gad.
A run needs at least `student` and `data.train`.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: warmup, then GAD, at the paper's shapes."""
    config = ConfigDict()

    # The student: a Hugging Face directory or hub id (Llama, Qwen2, Qwen2.5, Qwen3 or Mistral architecture).
    config.student = ""
    # Start from random weights: the student's directory then needs no more than config.json and a tokenizer.
    config.random_init = False
    # Which stages run, in this order: "seqkd" (cross entropy alone), "warmup" (cross entropy; the discriminator learns
    # on the student's samples), "gad" (policy gradient on the discriminator's score).
    config.stages = ("warmup", "gad")
    # Seeds the order of the data, the sampling, the new scalar head and random weights.
    config.seed = 0
    # B, prompts in a step, over all devices and processes.
    config.batch_size = 256
    # Compute dtype: "float32", "bfloat16", or "auto" (float32 on CPU, bfloat16 elsewhere). Masters are float32 always.
    config.dtype = "auto"
    # What a layer keeps for its backward pass: "none" (remat off: keep all), "dots" (matrix products) or "full".
    config.remat = "full"

    # LoRA: generator, discriminator and reference as adapters on every projection of one frozen student, which is held
    # once, in the compute dtype. Learning rates want to be ten to a hundred times higher than for full training.
    config.lora = ConfigDict()
    # Rank of the adapters; 0 trains all parameters.
    config.lora.rank = 0
    # What the adapters add is scaled by alpha / rank.
    config.lora.alpha = 32.0

    config.data = ConfigDict()
    # Teacher answers to learn from, and answers to other prompts to measure on ("" measures nothing). Parquet in the
    # schema of the README; a file, a folder or a glob.
    config.data.train = ""
    config.data.heldout = ""
    # Prompts longer than this many tokens are dropped and counted.
    config.data.max_prompt_length = 2048
    # T, tokens of a response. Longer teacher answers are cut here, without an EOS; sampling stops here.
    config.data.max_response_length = 1536
    # Rows that the API cut (finish_reason "length"): "drop" them, or "keep" them and train on them without an EOS.
    config.data.cut_answers = "drop"
    # A chat template (Jinja text, or the path of a file) instead of the tokenizer's own; base models need one.
    config.data.chat_template = ""
    # Extra arguments of the template, such as enable_thinking for Qwen3, as JSON: '{"enable_thinking": false}'. An
    # exported student's template holds those of its run; these come on top.
    config.data.template_args = ""
    # The date that a template may print, YYYY-MM-DD, pinned so that a run means the same tomorrow.
    config.data.template_date = "2024-07-26"

    config.rollout = ConfigDict()
    # N, samples for each prompt in warmup and gad; at least 2.
    config.rollout.num_samples = 8
    # Temperature of sampling; log-probs are of the scaled distribution. Training samples without top-p or top-k.
    config.rollout.temperature = 0.8
    # Samples that are decoded at once, over all devices (0: all of a step). When one ends, its slot takes the next.
    # Memory is taken by their key-value caches, and by those of the prompts that they belong to. Fewer slots take less
    # of it, and more token steps. A multiple of the parts that the devices of sampling split a batch into.
    config.rollout.slots = 0

    config.optimizer = ConfigDict()
    # AdamW, and the clip of the gradient's global norm, for generator and discriminator alike.
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.eps = 1e-8
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 0.2
    # A step with a gradient that is not finite is skipped; after this many in a row the run stops.
    config.optimizer.max_skipped_steps = 10
    # Watchdogs that stop the run, with a checkpoint and exit status 2, instead of only warning: "discriminator"
    # (saturates: nearly always right, or never), "length" (answers run away), "kl" (explodes), "entropy" (collapses),
    # "throughput" (drops); commas between, () for none. What each looks for: gadjax/trainer/watchdogs.py. The run does
    # not go on while the warning stands, until this no longer names it.
    config.stop_on = ()

    config.discriminator = ConfigDict()
    # Where the discriminator starts: "" grows it from the student, "generator" from the generator as it enters the
    # first stage with a discriminator (after seqkd, say; worth it where the student starts from random weights); else a
    # directory or hub id of a causal LM with the student's tokenizer (any size), or an exported discriminator.
    config.discriminator.init = ""
    # "bt" (Bradley-Terry) or "ce" (cross entropy, the ablation).
    config.discriminator.loss = "bt"
    # Divides the score difference in the Bradley-Terry loss.
    config.discriminator.bt_temperature = 1.0
    # Optimizer steps on each rollout; rewards are the scores before the first.
    config.discriminator.updates_per_step = 1
    # Past groups are kept up to this many samples (0: no replay; else at least num_samples) and make up this share of
    # each update.
    config.discriminator.replay_size = 0
    config.discriminator.replay_share = 0.5

    # A stage's length: `steps`, or `epochs` over the training data where steps is 0. Learning rates are constant.
    config.seqkd = ConfigDict()
    config.seqkd.epochs = 3.0
    config.seqkd.steps = 0
    config.seqkd.generator_learning_rate = 5e-6

    config.warmup = ConfigDict()
    config.warmup.epochs = 1.0
    config.warmup.steps = 0
    config.warmup.generator_learning_rate = 1e-6
    config.warmup.discriminator_learning_rate = 1e-6
    # At the start, steps that update the discriminator alone (none where train_discriminator is off).
    config.warmup.discriminator_only_steps = 10
    # Ablations: leave one of the two as it is.
    config.warmup.train_generator = True
    config.warmup.train_discriminator = True

    config.gad = ConfigDict()
    config.gad.epochs = 2.0
    config.gad.steps = 0
    config.gad.generator_learning_rate = 1e-6
    config.gad.discriminator_learning_rate = 1e-6
    config.gad.train_generator = True
    # False: the discriminator stays as it entered (the paper's off-policy ablation).
    config.gad.train_discriminator = True
    # Clip of the probability ratio, and the dual clip (above 1) where the advantage is negative.
    config.gad.clip = 0.2
    config.gad.dual_clip = 3.0
    # β, weight of the KL (k3) to the policy that entered this stage.
    config.gad.kl_coefficient = 1e-3
    config.gad.entropy_coefficient = 0.0
    # Optimizer steps on each rollout: minibatches, times passes over them.
    config.gad.ppo_minibatches = 1
    config.gad.ppo_epochs = 1
    # How token losses add up: "token_mean" (one mean over the batch), "sequence_mean", or "constant" (sums over
    # max_response_length: no bias by length).
    config.gad.aggregation = "token_mean"
    # Weight of a cross-entropy term on the teacher's answers.
    config.gad.sft_coefficient = 0.0
    # Cap of the importance weight between sampler and trainer log-probs; 0 uses none. With more than one update on a
    # rollout the ratio is taken against the sampler's log-probs already, and this has no effect.
    config.gad.importance_cap = 0.0

    # Slices of an update whose gradients are added up; they change nothing but memory. 0: as few as leave each device
    # no more than micro_batches.tokens tokens of rows at once.
    config.micro_batches = ConfigDict()
    config.micro_batches.generator = 0
    config.micro_batches.discriminator = 0
    config.micro_batches.tokens = 32768
    # Tokens of a packed row; 0 takes the width of the data's longest prompt plus data.max_response_length. On CPUs it
    # takes the latter as many times as a prompt has responses there (D's have the teacher's too) where that is no more
    # than micro_batches.tokens: prompts are computed once then, but a few long rows pad a small batch more.
    config.row_length = 0
    # Response positions whose logits exist at once on a device.
    config.logprob_chunk = 1024

    # Devices along each axis; one may be -1, which takes the rest. The batch is split over data * fsdp, weights and
    # optimizer state over fsdp, heads and vocabulary over tensor.
    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.tensor = 1
    # While sampling, weights are whole but for this many devices that share each: mesh.tensor times a divisor of
    # mesh.fsdp. More take less memory for weights, and communicate at every token. 0: the fewest with which a device
    # holds at most 4 GiB of them, or as many as divide the key-value heads.
    config.mesh.decode_tensor = 0

    # What waits in the host's memory while it is not used: the optimizers' moments; and the networks (discriminator and
    # reference while sampling, generator and reference while the discriminator learns).
    config.offload = ConfigDict()
    config.offload.optimizer = False
    config.offload.networks = False

    # Steps between measurements on held-out prompts (they are measured at the ends of stages too; 0: only there).
    config.eval_every = 50
    config.evaluation = ConfigDict()
    # Held-out prompts to measure on (0: all), and of those, how many answers go to samples.jsonl each time.
    config.evaluation.prompts = 128
    config.evaluation.shown = 8
    # Temperature of the held-out answers; 0 is greedy, as in the paper.
    config.evaluation.temperature = 0.0
    # At the ends of stages: folds of the two-sample test (a fresh classifier tells teacher from student; 0: leave out),
    # its passes over the answers, and its learning rate.
    config.evaluation.two_sample_folds = 0
    config.evaluation.two_sample_epochs = 3
    config.evaluation.two_sample_learning_rate = 1e-5

    config.checkpoint = ConfigDict()
    # Steps between checkpoints (the ends of stages are saved too), and how many of the last ones to keep.
    config.checkpoint.every = 100
    config.checkpoint.keep = 2
    # Steps of the whole run that this divides are saved as well, and stay on disk; 0 for none.
    config.checkpoint.keep_every = 0
    # A held-out figure by which the best checkpoint stays as well, WORKDIR@best: "nll" (least), "rouge_l" (most) or
    # "two_sample" (nearest to 0.5; measured at the ends of stages). A measurement that beats all before is saved at
    # once. "" for none.
    config.checkpoint.best = ""
    # Where checkpoints go: a folder, in the workdir where it is relative; or gs://BUCKET/FOLDER (pip install gcsfs; no
    # real bucket was tried). Of this run alone: what is not in the workdir gets a file, workdir.txt, that says whose it
    # is; it is to be deleted where the workdir was moved. "" is WORKDIR/checkpoints.
    config.checkpoint.directory = ""
    # Dtype of the exported weights: "float32" or "bfloat16".
    config.export_dtype = "bfloat16"

    config.log = ConfigDict()
    # TensorBoard events in the workdir.
    config.log.tensorboard = True
    # Weights & Biases project; "" logs nothing there (pip install wandb).
    config.log.wandb_project = ""
    return config.lock()
