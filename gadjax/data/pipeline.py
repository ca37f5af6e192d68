"""Turns rows into batches of token ids: one pass tokenises them, then Grain gives the order.

Each epoch has its own permutation of all rows, from the seed. The first `steps_per_epoch * batch_size` rows are its
batches. The rest, fewer than a batch, are left out of that epoch. Batch k depends on (data, seed, k) alone, so each of
several processes makes whole batches and takes its slice when rows go to devices (`gadjax.parallel.processes`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gadjax.data import heldout
from gadjax.data.bins import multiple_of
from gadjax.data.schema import Rows
from gadjax.data.tokenizer import ChatTokenizer
from gadjax.errors import UserError

_WIDTH_MULTIPLE = 16
_CHUNK = 512  # rows tokenised in one call: enough for the tokenizer's threads, and few enough to show progress


@dataclasses.dataclass(frozen=True)
class Counts:
    """What became of the rows: `rows` is the sum of `usable` and the three `dropped_*`.

    A dropped row counts once, for the first reason that applies, in the order of the fields.
    """

    rows: int
    usable: int
    dropped_marked: int  # the API gave no answer to learn from (a content filter, a refusal, a tool call, ...)
    dropped_cut: int  # the API cut the answer, and `cut_answers` is "drop"
    dropped_long_prompt: int  # the prompt is longer than `max_prompt_length`
    truncated_answers: int  # usable, but cut here at `max_response_length`, so without EOS


class Ragged:
    """Sequences of token ids of unequal length, in one flat array."""

    def __init__(self, sequences: Iterable[np.ndarray]):
        sequences = list(sequences)
        self.lengths = np.array([len(ids) for ids in sequences], np.int32)  # [rows]
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self.flat = np.concatenate([np.zeros(0, np.int32), *sequences])  # int32 [tokens]: all sequences in order

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.flat[self._ends[index] - self.lengths[index] : self._ends[index]]

    def padded(self, indices: Sequence[int] | np.ndarray, width: int, pad_id: int) -> np.ndarray:
        """The sequences at `indices`, padded on the right: int32 [len(indices), width]."""
        out = np.full((len(indices), width), pad_id, np.int32)
        for row, index in zip(out, indices, strict=True):
            ids = self[index]
            row[: len(ids)] = ids
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The usable rows as token ids, with random access.

    All batches of a dataset have the same shapes. P = `prompt_width` and T = `response_width` are its longest prompt
    and answer, rounded up to a multiple of 16, at most the configured maxima.
    """

    source: Rows
    counts: Counts
    prompts: Ragged  # each ends with the generation prompt
    answers: Ragged  # each ends with the turn-end id if `ended`
    ended: np.ndarray  # bool [usable]: the answer is complete
    rows: np.ndarray  # int32 [usable]: index into `source`
    pad_id: int
    prompt_width: int
    response_width: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: `prompt` int32 [prompt], `response` int32 [response], `ended`, `row` in `source`."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return {
            "prompt": self.prompts[index],
            "response": self.answers[index],
            "ended": bool(self.ended[index]),
            "row": int(self.rows[index]),
        }

    def batch(self, indices: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """The examples at `indices`, as int32 arrays padded on the right.

        Returns:
          prompt [B, P], prompt_length [B], teacher [B, T], teacher_length [B], row [B] (index into `source`).
        """
        indices = np.asarray(indices, np.int64)
        return {
            "prompt": self.prompts.padded(indices, self.prompt_width, self.pad_id),
            "prompt_length": self.prompts.lengths[indices],
            "teacher": self.answers.padded(indices, self.response_width, self.pad_id),
            "teacher_length": self.answers.lengths[indices],
            "row": self.rows[indices],
        }

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in one epoch."""
        return len(self) // batch_size


def prepare(
    rows: Rows,
    tokenizer: ChatTokenizer,
    *,
    max_prompt_length: int,
    max_response_length: int,
    cut_answers: str,
    source_name: str,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Tokenises every usable row and counts the others (docs/algorithm.md, section 4).

    Args:
      rows: from `read_rows`.
      tokenizer: the student's.
      max_prompt_length: tokens; longer prompts are dropped, because a cut one would lack the assistant header.
      max_response_length: tokens, EOS included; longer answers are cut and get no EOS.
      cut_answers: "drop" or "keep", for answers that the API cut; kept ones get no EOS.
      source_name: the config's field or the file, for messages.
      progress: called with (rows done, all rows).

    Raises:
      UserError: the template refuses a chat (names file and row), or no row is usable.
    """
    if cut_answers not in ("drop", "keep"):
        raise UserError(f"data.cut_answers is {cut_answers!r}; expected 'drop' or 'keep'")
    wanted = ~rows.marked if cut_answers == "keep" else ~(rows.marked | rows.cut)
    candidates = np.flatnonzero(wanted)
    # Tokenise prompts and answers, chunk by chunk; drop long prompts and cut long answers.
    prompts: list[np.ndarray] = []
    answers: list[np.ndarray] = []
    ended: list[np.ndarray] = []
    kept: list[np.ndarray] = []
    truncated = 0
    for start in range(0, len(candidates), _CHUNK):
        chunk = candidates[start : start + _CHUNK]
        chunk_prompts = _prompt_ids(rows, chunk, tokenizer)
        fits = [len(ids) <= max_prompt_length for ids in chunk_prompts]
        chunk = chunk[fits]
        chunk_answers = tokenizer.response_ids_batch([rows.answer(i) for i in chunk], ~rows.cut[chunk])
        overlong = np.array([len(ids) > max_response_length for ids in chunk_answers], bool)
        prompts += [ids for ids, fit in zip(chunk_prompts, fits, strict=True) if fit]
        answers += [ids[:max_response_length] for ids in chunk_answers]
        ended.append(~rows.cut[chunk] & ~overlong)
        kept.append(chunk)
        truncated += int(overlong.sum())
        if progress is not None:
            progress(min(start + _CHUNK, len(candidates)), len(candidates))
    counts = Counts(
        rows=len(rows),
        usable=len(prompts),
        dropped_marked=int(rows.marked.sum()),
        dropped_cut=int((rows.cut & ~rows.marked).sum()) if cut_answers == "drop" else 0,
        dropped_long_prompt=len(candidates) - len(prompts),
        truncated_answers=truncated,
    )
    if not prompts:
        raise UserError(
            f"{source_name} ({', '.join(rows.files)}): no usable row: of {counts.rows}, "
            f"{counts.dropped_marked} are marked as no answer, {counts.dropped_cut} were cut by the API "
            f"(data.cut_answers='keep' uses them) and {counts.dropped_long_prompt} have prompts of more than "
            f"{max_prompt_length} tokens"
        )
    prompt_ids, answer_ids = Ragged(prompts), Ragged(answers)
    return Dataset(
        source=rows,
        counts=counts,
        prompts=prompt_ids,
        answers=answer_ids,
        ended=np.concatenate(ended),
        rows=np.concatenate(kept).astype(np.int32),
        pad_id=tokenizer.pad_id,
        prompt_width=_width(prompt_ids, max_prompt_length),
        response_width=_width(answer_ids, max_response_length),
    )


def split(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The dataset without the held-out prompts, and with them alone; `share` of the prompts are held out.

    Rows of one prompt are on the same side (`gadjax.data.heldout`). Rows that were dropped count as those of the first.

    Raises:
      UserError: one of the two would be empty.
    """
    held = np.array([heldout.rank(dataset.source.messages(int(row)), "share") < share for row in dataset.rows])
    if held.all() or not held.any():
        raise UserError(
            f"data.heldout_share {share} holds out {held.sum()} of {len(held)} rows of "
            f"{', '.join(dataset.source.files)}: choose another share, or name a file in data.heldout"
        )
    first, second = (_part(dataset, np.flatnonzero(chosen)) for chosen in (~held, held))
    dropped = dataset.counts.rows - dataset.counts.usable
    counts = dataclasses.replace(dataset.counts, **_usable(first, more=dropped))
    none = Counts(0, 0, 0, 0, 0, 0)
    return dataclasses.replace(first, counts=counts), dataclasses.replace(
        second, counts=dataclasses.replace(none, **_usable(second))
    )


def _part(dataset: Dataset, chosen: np.ndarray) -> Dataset:
    """Some examples of a dataset, in batches of the same shapes."""
    prompts, answers = (Ragged(part[int(i)] for i in chosen) for part in (dataset.prompts, dataset.answers))
    return dataclasses.replace(
        dataset, prompts=prompts, answers=answers, ended=dataset.ended[chosen], rows=dataset.rows[chosen]
    )


def _usable(dataset: Dataset, more: int = 0) -> dict[str, int]:
    """The counts of a part that its rows tell; `more` rows were dropped."""
    truncated = int((~dataset.ended & ~dataset.source.cut[dataset.rows]).sum())
    return {"rows": len(dataset) + more, "usable": len(dataset), "truncated_answers": truncated}


def batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    num_epochs: int | None = None,
    start_step: int = 0,
) -> Any:
    """A Grain iterator over shuffled batches, each as `Dataset.batch` returns it.

    The iterator's state, for `get_state` and `set_state`, is {"next_index": step}.

    Args:
      batch_size: B, over all processes.
      seed: fixes the order, together with the epoch.
      num_epochs: passes over the data; None for endless ones.
      start_step: number of batches to skip, unread, from the start of the first epoch.

    Raises:
      UserError: the batch is larger than the dataset.
    """
    import grain

    if batch_size > len(dataset):
        raise UserError(
            f"batch_size={batch_size} is more than the {len(dataset)} usable rows; lower it or give more data"
        )
    order = (
        grain.MapDataset.range(len(dataset))
        .shuffle(_grain_seed(seed))
        .batch(batch_size, drop_remainder=True)
        .map(dataset.batch)
        .repeat(num_epochs)
    )
    # One thread and a short buffer are enough, because the data is in memory.
    iterator = iter(order.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)))
    iterator.set_state({"next_index": start_step})
    return iterator


def shared_prompts(train: Dataset, held: Dataset) -> int:
    """Number of held-out prompts that are trained on too, whose figures say nothing about new prompts."""
    trained = {_digest(train.prompts[i]) for i in range(len(train))}
    return sum(_digest(held.prompts[i]) in trained for i in range(len(held)))


def same_prompt(prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The rows of each different prompt, rising, in the order in which the prompts first come."""
    groups: dict[bytes, list[int]] = {}
    for row, ids in enumerate(prompts):
        groups.setdefault(np.asarray(ids, np.int64).tobytes(), []).append(row)
    return [np.array(rows) for rows in groups.values()]


def _prompt_ids(rows: Rows, indices: np.ndarray, tokenizer: ChatTokenizer) -> list[np.ndarray]:
    """The prompts' token ids; an error names the row whose chat cannot be tokenised."""
    chats = [rows.messages(i) for i in indices]
    try:
        return tokenizer.prompt_ids_batch(chats)
    except UserError:
        for index, chat in zip(indices, chats, strict=True):
            try:
                tokenizer.prompt_ids(chat)
            except UserError as error:
                raise UserError(f"{rows.where(index)}: {error}") from error
        raise


def _width(sequences: Ragged, limit: int) -> int:
    longest = int(sequences.lengths.max())
    return min(multiple_of(longest, _WIDTH_MULTIPLE), limit)


def _grain_seed(seed: int) -> int:
    """A seed far from those of neighbours: Grain shuffles epoch e by seed + e, and runs 0, 1, 2 must differ."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _digest(ids: np.ndarray) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
