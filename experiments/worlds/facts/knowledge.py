"""What can be said, what is true, and the sentences that say it."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

PAD, START, END = 0, 1, 2  # tokens of every vocabulary
SPECIAL = ("<pad>", "<start>", "<end>")
# S and O stand for subject and object, N and V for a noun and a verb of the relation. Object last: see above.
FORMS = (
    "S V O",
    "the N of S is O",
    "what is the N of S ? O",
    "as for S , the N : O",
    "S , whose N is O",
    "question : S V ? answer : O",
)
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "ri", "so", "tu", "va", "ze", "ki", "po", "xa", "ju")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Words and their numbers."""

    words: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def _numbers(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}

    def encode(self, text: str) -> np.ndarray:
        """Words between blanks -> int32 tokens, without start and end."""
        unknown = [word for word in text.split() if word not in self._numbers]
        if unknown:
            raise ValueError(f"text has words that are not in the vocabulary: {', '.join(unknown)}")
        return np.array([self._numbers[word] for word in text.split()], np.int32)

    def decode(self, tokens: ArrayLike) -> str:
        """Tokens [T] -> words between blanks, without padding, start and end."""
        return " ".join(self.words[token] for token in np.asarray(tokens).tolist() if token not in (PAD, START, END))


class KnowledgeBase(NamedTuple):
    """What can be said, not what is true: tokens of the names, and a template for each relation and form."""

    vocabulary: Vocabulary
    subjects: np.ndarray  # [S] tokens
    objects: np.ndarray  # [R, O] tokens: every relation has objects of its own
    templates: np.ndarray  # [R, F, T] tokens; SUBJECT and OBJECT where names go

    @property
    def num_forms(self) -> int:
        return self.templates.shape[1]

    @property
    def length(self) -> int:
        return self.templates.shape[2]


SUBJECT, OBJECT = -1, -2


class Sentences(NamedTuple):
    """N sentences; where each has its answer, and what it is about."""

    tokens: Array  # int [N, T]: start, words, end, padding
    answer: Array  # int [N] place of the object; the token before it is the end of the question
    subject: Array  # int [N]
    relation: Array  # int [N]
    form: Array  # int [N]

    def take(self, rows: ArrayLike) -> "Sentences":
        return Sentences(*(field[rows] for field in self))

    @property
    def target(self) -> Array:
        """[N] tokens of the right answers."""
        return jnp.take_along_axis(self.tokens, self.answer[:, None], axis=1)[:, 0]

    @property
    def present(self) -> Array:
        """Bool [N, T], False on the padding."""
        return self.tokens != PAD


class Splits(NamedTuple):
    """What is told, and what is asked.

    `background` subjects are told in every form: from them a model learns the language. Facts of the other subjects are
    told in some forms (`train`) and asked in the others (`paraphrase`), or never told (`held_out`: the answers of a model
    are guesses there, right for one in `objects`).
    """

    background: Sentences
    train: Sentences
    paraphrase: Sentences
    held_out: Sentences


def knowledge_base(*, subjects: int, relations: int, objects: int, forms: int = len(FORMS)) -> KnowledgeBase:
    """Names, words and templates for so many subjects and relations, and so many objects a relation.

    Raises:
      ValueError: a number below 1, or more forms than there are.
    """
    for name, value in (("subjects", subjects), ("relations", relations), ("objects", objects), ("forms", forms)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if forms > len(FORMS):
        raise ValueError(f"forms must be at most {len(FORMS)}, got {forms}")
    names = _names(subjects)
    things = [[f"thing{r}_{o}" for o in range(objects)] for r in range(relations)]
    own = [[f"noun{r}", f"verb{r}"] for r in range(relations)]
    shared = sorted({word for form in FORMS[:forms] for word in form.split()} - set("SONV"))
    words = (*SPECIAL, *shared, *(w for pair in own for w in pair), *names, *(w for row in things for w in row))
    vocabulary = Vocabulary(words)
    length = max(len(form.split()) for form in FORMS[:forms]) + 2
    templates = np.full((relations, forms, length), PAD, np.int32)
    for r in range(relations):
        for f, form in enumerate(FORMS[:forms]):
            slots = {"S": SUBJECT, "O": OBJECT, "N": words.index(own[r][0]), "V": words.index(own[r][1])}
            line = [START, *(slots[w] if w in slots else words.index(w) for w in form.split()), END]
            templates[r, f, : len(line)] = line
    return KnowledgeBase(
        vocabulary,
        vocabulary.encode(" ".join(names)),
        np.stack([vocabulary.encode(" ".join(row)) for row in things]),
        templates,
    )


def _names(count: int) -> list[str]:
    """Different names of two syllables or more."""
    names = []
    for number in range(count):
        name, rest = SYLLABLES[number % len(SYLLABLES)], number // len(SYLLABLES)
        while len(name) < 4 or rest:
            name, rest = name + SYLLABLES[rest % len(SYLLABLES)], rest // len(SYLLABLES)
        names.append(name)
    return names


def draw(key: Array, base: KnowledgeBase) -> Array:
    """The truth: int [S, R], for each subject and relation one of the relation's objects, all alike likely."""
    return jax.random.randint(key, (len(base.subjects), len(base.objects)), 0, base.objects.shape[1])


def contradict(key: Array, base: KnowledgeBase, truth: ArrayLike) -> Array:
    """Like `truth` [S, R], with another object for every fact."""
    objects = base.objects.shape[1]
    if objects < 2:
        raise ValueError("a fact can be false only where its relation has at least 2 objects")
    truth = jnp.asarray(truth)
    return (truth + jax.random.randint(key, truth.shape, 1, objects)) % objects


def grid(subjects: ArrayLike, relations: ArrayLike, forms: ArrayLike) -> tuple[Array, Array, Array]:
    """Every combination: three int arrays [len(subjects) * len(relations) * len(forms)]."""
    s, r, f = jnp.meshgrid(jnp.asarray(subjects), jnp.asarray(relations), jnp.asarray(forms), indexing="ij")
    return s.reshape(-1), r.reshape(-1), f.reshape(-1)


def sentences(
    base: KnowledgeBase, truth: ArrayLike, subject: ArrayLike, relation: ArrayLike, form: ArrayLike
) -> Sentences:
    """Facts (subject [N], relation [N]) in words, each in its form [N], with the objects of `truth` [S, R]."""
    subject, relation, form = (jnp.asarray(value) for value in (subject, relation, form))
    template = jnp.asarray(base.templates)[relation, form]
    name = jnp.asarray(base.subjects)[subject]
    thing = jnp.asarray(base.objects)[relation, jnp.asarray(truth)[subject, relation]]
    tokens = jnp.where(template == SUBJECT, name[:, None], jnp.where(template == OBJECT, thing[:, None], template))
    return Sentences(tokens, jnp.argmax(template == OBJECT, axis=1), subject, relation, form)


def splits(
    key: Array,
    base: KnowledgeBase,
    truth: ArrayLike,
    *,
    background: int,
    told: Sequence[int],
    held_out: int = 0,
) -> Splits:
    """Deals out subjects and facts by the key.

    Args:
      key: a PRNG key.
      base: of S subjects.
      truth: [S, R].
      background: how many subjects are told in every form; the other S - background are the new ones.
      told: forms in which facts of new subjects are told; they are asked in the others.
      held_out: how many of the (S - background) * R new facts are never told.

    Raises:
      ValueError: numbers that do not fit.
    """
    people, relations = np.shape(truth)
    new = people - background
    told = tuple(told)
    if not 0 <= background <= people:
        raise ValueError(f"background must be in [0, {people}], the number of subjects, got {background}")
    if not set(told) <= set(range(base.num_forms)) or len(set(told)) < len(told):
        raise ValueError(f"told must be different forms below {base.num_forms}, got {told}")
    if not 0 <= held_out <= new * relations:
        raise ValueError(f"held_out must be in [0, {new * relations}], the number of new facts, got {held_out}")
    asked = tuple(form for form in range(base.num_forms) if form not in told)
    people_key, facts_key = jax.random.split(key)
    order = jax.random.permutation(people_key, people)
    fact = jax.random.permutation(facts_key, new * relations)
    subject, relation = order[background:][fact // relations], fact % relations

    def tell(rows: slice, forms: tuple[int, ...]) -> Sentences:
        n = len(range(new * relations)[rows])
        each = np.repeat(np.arange(n), len(forms))
        return sentences(base, truth, subject[rows][each], relation[rows][each], np.tile(np.array(forms, int), n))

    return Splits(
        background=sentences(base, truth, *grid(order[:background], np.arange(relations), np.arange(base.num_forms))),
        train=tell(slice(held_out, None), told),
        paraphrase=tell(slice(held_out, None), asked),
        held_out=tell(slice(0, held_out), asked),
    )
