from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from gadjax.distill.forward import per_sequence, per_token, response_lengths


def test_lengths_and_values_follow_the_owner(bigrams):
    """Whatever the layout: packed rows, one sequence a row, and over micro-batches."""
    prompts, responses = bigrams.sequences()
    lengths = [len(response) for response in responses]
    packed = bigrams.pack(prompts, responses)
    np.testing.assert_array_equal(response_lengths(packed), lengths)

    rows, _ = bigrams.policy_rows(bigrams.method(ppo_minibatches=2, generator_micro_batches=2))
    np.testing.assert_array_equal(np.ravel(jax.vmap(response_lengths)(rows)), lengths)

    numbers = jnp.arange(1.0, 1 + len(lengths))
    values = np.array(per_token(numbers, packed))
    for owner, (number, length) in enumerate(zip(numbers, lengths, strict=True)):
        np.testing.assert_array_equal(values[packed.owner == owner], np.full(length, number))
    np.testing.assert_array_equal(values[~packed.mask], 0.0)

    poisoned = np.where(packed.mask, values * packed.step, 1e9)  # rubbish in empty slots counts nowhere
    sums = [number * sum(range(length)) for number, length in zip(numbers, lengths, strict=True)]
    np.testing.assert_allclose(per_sequence(jnp.array(poisoned), packed), sums, rtol=1e-6)


def test_groups_hold_the_teacher_first_and_all_samples(bigrams):
    """In the layout on the device, where teacher and samples are padded to one width."""
    rows, weight = bigrams.groups(bigrams.method())
    expected = np.concatenate([bigrams.batch["teacher_length"][:, None], bigrams.samples.lengths], axis=1)
    np.testing.assert_array_equal(np.reshape(response_lengths(rows), expected.shape), expected)
    np.testing.assert_allclose(weight, np.full(len(expected), 1 / len(expected)))
    flat = jax.tree.map(lambda leaf: leaf[0], rows)
    held = np.array(flat.target)[np.array(flat.owner) == 4]
    np.testing.assert_array_equal(held, bigrams.batch["teacher"][1, : expected[1, 0]])
