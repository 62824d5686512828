"""Facts as a data set for `experiments.train`."""

import jax
import ml_collections
import numpy as np

from experiments.engine.errors import UserError
from experiments.worlds import InMemory, Text, Trained, World
from experiments.worlds.facts.knowledge import (
    END,
    START,
    KnowledgeBase,
    Sentences,
    Vocabulary,
    draw,
    knowledge_base,
    splits,
)


def build(config: ml_collections.ConfigDict, trained: Trained) -> World:
    """Sentences of a knowledge base; `configs.common.facts` has the fields.

    Trained on are all forms of the background subjects and the `told` forms of the others; the test set asks for the facts
    of these in the forms that were not told.
    """
    del trained
    try:
        with jax.ensure_compile_time_eval():  # a plan asks for the world while it traces
            base, train, test = _dealt(config)
    except ValueError as error:
        raise UserError(f"config.data: {error}") from error
    if not len(test):
        raise UserError(
            "config.data: no question is left to ask; leave a form out of told, and a subject of background"
        )
    words = tuple("" if token <= END else word for token, word in enumerate(base.vocabulary.words))
    return World(
        train=train,
        test=test,
        example_shape=(base.length,),
        num_classes=len(words),
        text=Text(words, lambda text: _encode(base.vocabulary, text), base.vocabulary.decode, end=END, asks=True),
    )


def _dealt(config: ml_collections.ConfigDict) -> tuple[KnowledgeBase, InMemory, InMemory]:
    base = knowledge_base(subjects=config.subjects, relations=config.relations, objects=config.objects)
    truth_key, split_key = jax.random.split(jax.random.key(config.get("seed", 0)))
    truth = draw(truth_key, base)
    dealt = splits(split_key, base, truth, background=config.background, told=tuple(config.told))
    return base, _rows(dealt.background, dealt.train), _rows(dealt.paraphrase)


def _rows(*parts: Sentences) -> InMemory:
    tokens, answer = (
        np.concatenate([np.asarray(getattr(part, name)) for part in parts]) for name in ("tokens", "answer")
    )
    return InMemory(
        {
            "tokens": tokens.astype(np.int32),
            "answer": answer.astype(np.int32),
            "row": np.arange(len(tokens), dtype=np.int32),
        }
    )


def _encode(vocabulary: Vocabulary, text: str) -> np.ndarray:
    return np.concatenate([np.array([START], np.int32), vocabulary.encode(text)])
