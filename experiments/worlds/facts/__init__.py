"""A knowledge base in sentences: subjects, relations and objects, each fact told in several forms.

    base = facts.knowledge_base(subjects=60, relations=4, objects=10)     words and templates; nothing random
    truth = facts.draw(key, base)                                         which object each fact has
    given = facts.sentences(base, truth, *facts.grid(subjects, relations, forms))

Sentences are arrays of tokens of one length. The object is the only word that the rest of a sentence does not settle, and it
comes last but for the end, so the words before it are a question with one exact answer. Everything but `knowledge_base` and
`build` can be traced, and `jax.vmap` over keys makes many worlds.
"""

from experiments.worlds.facts.data import build
from experiments.worlds.facts.knowledge import (
    END,
    FORMS,
    PAD,
    START,
    KnowledgeBase,
    Sentences,
    Splits,
    Vocabulary,
    contradict,
    draw,
    grid,
    knowledge_base,
    sentences,
    splits,
)

__all__ = [
    "END",
    "FORMS",
    "PAD",
    "START",
    "KnowledgeBase",
    "Sentences",
    "Splits",
    "Vocabulary",
    "build",
    "contradict",
    "draw",
    "grid",
    "knowledge_base",
    "sentences",
    "splits",
]
