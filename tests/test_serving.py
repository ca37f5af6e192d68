"""The lines of docs/serving.md that write the discriminator as a sequence classifier."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.usefixtures("quick_compile")
CHATS = [("What is one plus two", "three"), ("What is two plus two", "four five"), ("Hello", "")]


def test_its_scores_are_the_discriminators(repo, command, finished_run, tmp_path, monkeypatch):
    """All of them less the bias. The template of the student here ends with a line break, as many do."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (lines,) = re.findall(r"```python\n(.*?)```", (repo / "docs" / "serving.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    source = finished_run.workdir / "export" / "discriminator"
    exec(lines.replace("runs/mine/export/discriminator", str(source)), {})

    tokenizer = transformers.AutoTokenizer.from_pretrained("reward")
    model = transformers.AutoModelForSequenceClassification.from_pretrained("reward")
    chats = [[{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] for ask, answer in CHATS]
    with torch.no_grad():
        encoded = [tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt") for chat in chats]
        found = [float(model(**inputs).logits[0, 0]) for inputs in encoded]
    assert all(inputs["input_ids"][0, -1] == tokenizer.eos_token_id for inputs in encoded)

    rows = [json.dumps({"prompt": ask, "response": answer}) for ask, answer in CHATS]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    flags = (f"--model={source}", "--data=rows.jsonl", "--out=scores.jsonl", "--dtype=float32")
    assert command("gadjax.score", *flags).status == 0
    scores = [json.loads(line)["score"] for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    bias = transformers.AutoModelForTokenClassification.from_pretrained(source).score.bias.item()
    assert found == pytest.approx([score - bias for score in scores], abs=1e-5)
