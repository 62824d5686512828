"""Facts in sentences: words, forms, where the answer is, and what is told to whom."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.worlds import facts
from tests.experiments.models.helpers import quickly


def base(**sizes):
    return facts.knowledge_base(**{"subjects": 12, "relations": 3, "objects": 4, **sizes})


def test_sentences_in_words():
    given = base()
    truth = jnp.zeros((12, 3), int).at[1, 2].set(3)
    said = facts.sentences(given, truth, [1] * 6, [2] * 6, range(6))
    assert [given.vocabulary.decode(tokens) for tokens in said.tokens] == [
        "deba verb2 thing2_3",
        "the noun2 of deba is thing2_3",
        "what is the noun2 of deba ? thing2_3",
        "as for deba , the noun2 : thing2_3",
        "deba , whose noun2 is thing2_3",
        "question : deba verb2 ? answer : thing2_3",
    ]
    answer = given.vocabulary.encode("thing2_3")[0]
    np.testing.assert_array_equal(said.target, answer)
    for row, place in zip(np.asarray(said.tokens), np.asarray(said.answer), strict=True):
        assert row[0] == facts.START
        assert row[place + 1] == facts.END
        assert not np.any(row[place + 2 :])
    np.testing.assert_array_equal(said.present.sum(1), said.answer + 2)


def test_vocabulary():
    words = base(subjects=300, objects=20).vocabulary
    assert len(set(words.words)) == len(words) == len(words.words)
    assert words.decode([facts.START, *words.encode("what is thing0_1"), facts.END, facts.PAD]) == "what is thing0_1"
    with pytest.raises(ValueError, match="not in the vocabulary: unicorn"):
        words.encode("what is unicorn")


def test_a_question_has_one_answer_and_says_the_rest():
    """Words before the object are the same whatever is true, and differ between facts."""
    given = base()
    rows = facts.grid(range(12), range(3), range(6))
    truth = facts.draw(jax.random.key(0), given)
    other = facts.contradict(jax.random.key(1), given, truth)
    assert not np.any(truth == other)
    assert np.all((other >= 0) & (other < 4))
    true, false = (np.asarray(facts.sentences(given, t, *rows).tokens) for t in (truth, other))
    assert np.all((true != false).sum(1) == 1)
    answer = np.asarray(facts.sentences(given, truth, *rows).answer)
    assert np.all(true[np.arange(len(true)), answer] != false[np.arange(len(true)), answer])
    assert len({tuple(row[:place]) for row, place in zip(true, answer, strict=True)}) == 12 * 3 * 6


def about(part):
    return list(zip(*(np.asarray(x).tolist() for x in (part.subject, part.relation, part.form)), strict=True))


def test_splits():
    given = base()
    truth = facts.draw(jax.random.key(0), given)
    deal = lambda key: facts.splits(key, given, truth, background=5, told=(0, 2), held_out=4)  # noqa: E731
    dealt = quickly(deal)(jax.random.key(1))
    known = {subject for subject, _, _ in about(dealt.background)}
    assert len(known) == 5
    assert len(set(about(dealt.background))) == len(about(dealt.background)) == 5 * 3 * 6
    forms = collections.defaultdict(lambda: collections.defaultdict(set))
    for name in ("train", "paraphrase", "held_out"):
        for subject, relation, form in about(getattr(dealt, name)):
            assert subject not in known
            forms[name][subject, relation].add(form)
    assert forms["train"].keys() == forms["paraphrase"].keys()
    assert not forms["train"].keys() & forms["held_out"].keys()
    assert (len(forms["train"]), len(forms["held_out"])) == (7 * 3 - 4, 4)
    assert all(told == {0, 2} for told in forms["train"].values())
    assert all(asked == {1, 3, 4, 5} for name in ("paraphrase", "held_out") for asked in forms[name].values())
    expected = given.objects[np.asarray(dealt.paraphrase.relation), np.asarray(truth)[about_index(dealt.paraphrase)]]
    np.testing.assert_array_equal(dealt.paraphrase.target, expected)


def about_index(part):
    return np.asarray(part.subject), np.asarray(part.relation)


def test_splits_are_a_function_of_the_key_and_can_be_traced():
    given = base()
    truth = facts.draw(jax.random.key(0), given)
    deal = lambda key: facts.splits(key, given, truth, background=5, told=(1,), held_out=2)  # noqa: E731
    keys = jax.vmap(jax.random.key)(jnp.arange(2))
    both, one_by_one = quickly(jax.vmap(deal))(keys), quickly(deal)
    for index in range(2):
        jax.tree.map(
            lambda many, one, i=index: np.testing.assert_array_equal(many[i], one), both, one_by_one(keys[index])
        )
    assert np.any(both.train.subject[0] != both.train.subject[1])


def test_objects_are_alike_likely():
    drawn = facts.draw(jax.random.key(0), base(subjects=2000))
    counts = [np.bincount(np.asarray(drawn[:, r]), minlength=4) for r in range(3)]
    assert np.abs(np.array(counts) / 2000 - 0.25).max() < 0.05


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"background": 13, "told": (0,)}, r"background must be in \[0, 12\].*got 13"),
        ({"background": 5, "told": (6,)}, r"told must be different forms below 6, got \(6,\)"),
        ({"background": 5, "told": (1, 1)}, r"told must be different forms below 6, got \(1, 1\)"),
        ({"background": 5, "told": (0,), "held_out": 22}, r"held_out must be in \[0, 21\].*got 22"),
    ],
)
def test_what_splits_refuse(settings, says):
    given = base()
    with pytest.raises(ValueError, match=says):
        facts.splits(jax.random.key(0), given, jnp.zeros((12, 3), int), **settings)


def test_what_a_knowledge_base_refuses():
    with pytest.raises(ValueError, match="relations must be at least 1, got 0"):
        base(relations=0)
    with pytest.raises(ValueError, match="forms must be at most 6, got 7"):
        base(forms=7)
    with pytest.raises(ValueError, match="at least 2 objects"):
        facts.contradict(jax.random.key(0), base(objects=1), jnp.zeros((12, 3), int))
