"""Which units are off when, and what is counted as a right answer."""

import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.papers import sensitive_neuron_dropout as study
from experiments.worlds import facts
from tests.experiments.papers.smoke import smoke

WINDOW = jnp.zeros((3, 2, 5)).at[:, :, 3].set(jnp.arange(3.0)[:, None])  # unit 3 moves, the others stay
DRAWS = jnp.array([0.1, 0.9, 0.3, 0.2, 0.4])


def masks(dropped):
    """Indices of the units that are off in each of 8 epochs."""
    mask, off = jnp.ones(5, bool), []
    for epoch in range(8):
        # From epoch 5 on unit 0 moves.
        window = WINDOW if epoch < 5 else WINDOW[:, :, jnp.array([3, 0, 1, 2, 4])]
        draws = jnp.roll(DRAWS, epoch)
        mask = study.next_mask(study.DROPPED.index(dropped), epoch, mask, window, draws, every=3, fraction=0.2)
        off.append(np.flatnonzero(~np.asarray(mask)).tolist())
    return off


def test_sensitive_units_stay_off_for_their_epochs():
    assert masks("sensitive") == [[], [], [], [3], [3], [3], [0], [0]]


def test_random_units_change_every_epoch():
    assert masks("random") == [[], [], [], [4], [0], [1], [2], [3]]


def test_nothing_is_off_without_dropout():
    assert masks("none") == [[]] * 8


def oracle(tokens_to_logits):
    return models.Model(lambda key: {}, lambda params, tokens: {"logits": tokens_to_logits(tokens)}, {})


def test_right_answers_are_judged_before_the_answer_is_seen():
    base = facts.knowledge_base(subjects=3, relations=1, objects=4)
    truth = jnp.array([[0], [1], [2]])
    asked = facts.sentences(base, truth, *facts.grid(range(3), [0], [0, 1]))
    thing = base.objects[0, 1]

    def always_one(tokens):  # the second object is the next word, whatever came before
        return jnp.zeros((*tokens.shape, len(base.vocabulary))).at[..., thing].set(1.0)

    right = study.right_answers(oracle(always_one), {}, asked)
    np.testing.assert_array_equal(right, np.asarray(asked.subject) == 1)

    def repeat(tokens):  # the word itself: right only for who looks at the place of the answer
        return jnp.eye(len(base.vocabulary))[tokens]

    assert not np.any(study.right_answers(oracle(repeat), {}, asked))


def test_padding_is_no_word_to_learn():
    tokens = jnp.array([[1, 3, 2, 0, 0, 0]])
    logits = jnp.zeros((1, 5, 4)).at[0, 0, 3].set(2.0)
    loss = study.next_token_loss(oracle(lambda _: logits), {}, tokens)
    first, second = np.log(np.exp(2) + 3) - 2, np.log(4)
    np.testing.assert_allclose(loss, (first + second) / 2, rtol=1e-6)


def test_smoke(tmp_path):
    smoke("sensitive_neuron_dropout", tmp_path)
