"""Adapters merged by several processes: all gather them, and one reads the base. `tests/parity` has the rest."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from gadjax.errors import UserError
from gadjax.models import adapters, lora, save
from gadjax.models.adapters import StoredParam
from gadjax.models.architecture import Lora, ModelConfig
from gadjax.models.model import Model
from gadjax.models.weights import named_leaves
from gadjax.parallel import processes

pytestmark = pytest.mark.usefixtures("quick_compile")

HF_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
PLAIN = ModelConfig.from_hf(HF_CONFIG, "config.json")
LAYERS, PROJECTIONS = 2, 7


@pytest.fixture
def merged(tmp_path):
    """The tree of a network whose base is in a directory, and its adapters."""
    random = np.random.default_rng(0)
    fill = lambda abstract: jax.tree.map(lambda a: random.normal(size=a.shape).astype(np.float32), abstract)  # noqa: E731
    save.save_pretrained(tmp_path / "base", fill(Model(PLAIN).abstract_params()), PLAIN, HF_CONFIG, kind="generator")
    setting = Lora(2, 4.0)
    whole = Model(dataclasses.replace(PLAIN, lora=setting)).abstract_params()
    apart = adapters.Adapters(fill(lora.trained(whole)), setting, "base")
    return adapters.merged_params(tmp_path / "base", PLAIN, lora.frozen(whole), apart)


@pytest.fixture
def seen(monkeypatch):
    """Which parts of the base's files are read, and how many parts of adapters are gathered."""
    read, gathered = [], []
    of_file, of_adapter = StoredParam.fetch, adapters.fetch

    def from_file(self, layer, *, wanted=True):
        if wanted:
            read.append(self._path)
        return of_file(self, layer, wanted=wanted)

    def of_all(*arguments, **settings):
        gathered.append(1)
        return of_adapter(*arguments, **settings)

    monkeypatch.setattr(StoredParam, "fetch", from_file)
    monkeypatch.setattr(adapters, "fetch", of_all)
    return read, gathered


@pytest.mark.parametrize("first", [True, False])
def test_only_the_process_that_writes_reads_and_merges(merged, seen, monkeypatch, tmp_path, first):
    monkeypatch.setattr(processes, "is_first", lambda: first)
    save.save_pretrained(tmp_path / "out", merged, PLAIN, HF_CONFIG, kind="generator")
    read, gathered = seen
    assert len(gathered) == 2 * LAYERS * PROJECTIONS
    assert set(read) == (set(named_leaves(merged)) if first else set())
    assert (tmp_path / "out").exists() == first


def test_a_process_that_cannot_read_takes_part_to_the_end(merged, seen, monkeypatch, tmp_path):
    """A process that cannot read the base still takes part; otherwise the others would wait for ever."""
    read, gathered = seen
    recorded = StoredParam.fetch

    def failing(self, layer, *, wanted=True):
        value = recorded(self, layer, wanted=wanted)
        if wanted and "attention" in self._path:
            raise OSError("stale file handle")
        return value

    monkeypatch.setattr(StoredParam, "fetch", failing)
    with pytest.raises(UserError, match="stale file handle"):
        save.save_pretrained(tmp_path / "out", merged, PLAIN, HF_CONFIG, kind="generator")
    assert len(gathered) == 2 * LAYERS * PROJECTIONS
    assert "attention" in read[-1] and not (tmp_path / "out").exists()
