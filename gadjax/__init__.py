"""gadjax: black-box LLM distillation in JAX by Generative Adversarial Distillation (arXiv 2511.10643)."""

__version__ = "0.1.0"
