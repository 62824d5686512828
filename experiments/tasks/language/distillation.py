"""Where the sequences of a distillation come from, and how far student and teacher are apart on them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jax import Array

from experiments import models
from experiments.engine import parts
from experiments.engine.randomness import per_example_keys
from experiments.engine.task import Batch
from experiments.models.generation import PAD, generate
from experiments.worlds import World
from mlfuncs import distillation


class State(NamedTuple):
    """What a step reads and writes; another teacher of the same network compiles nothing."""

    step: Array
    params: Any
    optimizer: Any
    average: Any  # exponential moving average of `params`
    teacher: Any  # parameters, never changed
    stored: Any  # int32 [N, L]: what the teacher once made of every training prompt; () where that is not used


class Distillation(NamedTuple):
    config: ml_collections.ConfigDict
    world: World
    student: models.Model
    teacher: models.Model

    @property
    def needs_stored(self) -> bool:
        d = self.config.distillation
        return bool(d.stored == "teacher" and d.fresh_fraction < 1)

    def respond(self, model: models.Model, params: Any, keys: Array, tokens: Array) -> Array:
        """Rows like `tokens` [B, L] that go on from its prompts as a model does."""
        d, text = self.config.distillation, self.world.text
        assert text is not None
        return generate(
            model,
            params,
            keys,
            tokens[:, : d.prompt_length],
            length=tokens.shape[1],
            end=text.end,
            temperature=d.sampling_temperature,
        )

    def stored(self, key: Array, params: Any) -> Array:
        """The teacher's responses [N, L] to all training prompts, a batch at a time."""
        rows, size = len(self.world.train), self.config.batch_size
        index = np.arange(-(-rows // size) * size).reshape(-1, size)
        prompts = self.world.train.read(np.arange(rows))["tokens"][:, : self.config.distillation.prompt_length]
        length = self.world.example_shape[0]

        def respond(given: tuple[Array, Array]) -> Array:
            index, prompts = given
            tokens = jnp.pad(prompts, ((0, 0), (0, length - prompts.shape[1])))
            return self.respond(self.teacher, params, per_example_keys(key, index), tokens)

        # The last batch is filled up with rows from the start.
        every = jax.lax.map(respond, (jnp.asarray(index), jnp.asarray(prompts[index % rows])))
        return every.reshape(-1, length)[:rows]

    def rows(self, state: State, batch: Batch, keys: Array, coin_key: Array) -> Array:
        """The sequences [B, L] of one step."""
        d = self.config.distillation
        stored = state.stored[batch["row"]] if self.needs_stored else batch["tokens"]
        if d.fresh_fraction == 0:
            return stored
        model, params = (self.student, state.params) if d.fresh == "student" else (self.teacher, state.teacher)
        fresh = self.respond(model, params, keys, batch["tokens"])
        return distillation.choose_source(
            coin_key, fresh, stored, fresh_fraction=d.fresh_fraction, axis_name=parts.axis()
        )

    def losses(self, teacher: Any, params: Any, examples: tuple[Array, Array]) -> tuple[Array, dict[str, Array]]:
        """The divergence [B] on sequences, which no gradient goes through; prompts and padding don't count."""
        tokens, keys = examples
        d = self.config.distillation
        return distillation.sequence_divergence(
            self.student.apply(params, tokens[:, :-1], keys=keys)["logits"],
            jax.lax.stop_gradient(self.teacher.apply(teacher, tokens[:, :-1])["logits"]),
            self.counts(tokens),
            divergence=d.divergence,
            mixture=d.mixture,
            temperature=d.temperature,
            normalize_by_length=d.normalize_by_length,
        ), {}

    def counts(self, tokens: Array) -> Array:
        """Bool [B, L - 1]: which predicted tokens are of a response."""
        place = jnp.arange(1, tokens.shape[1])
        return (tokens[:, 1:] != PAD) & (place >= self.config.distillation.prompt_length)

    def divergence(self) -> Callable[[State, Array], float]:
        """Estimates the divergence of whole responses, KL(teacher || student), in nats, on test prompts."""
        count = min(self.config.evaluation.responses, len(self.world.test))
        prompts = self.world.test.read(np.arange(count))["tokens"]

        @jax.jit
        def measure(teacher: Any, params: Any, key: Array, prompts: Array) -> Array:
            tokens = self.respond(self.teacher, teacher, per_example_keys(key, jnp.arange(count)), prompts)
            student, true = (
                model.apply(weights, tokens[:, :-1])["logits"]
                for model, weights in ((self.student, params), (self.teacher, teacher))
            )
            return jnp.mean(distillation.sequence_divergence(student, true, self.counts(tokens)))

        def of(state: State, key: Array) -> float:
            return float(measure(state.teacher, state.average, key, prompts))

        return of

    def first(self, state: Any, key: Array, teacher: Any) -> State:
        """A new state beside the parameters of a teacher."""
        copied = jax.tree.map(jnp.copy, teacher)  # in memory of its own, which a step may use up
        stored = self.stored(key, teacher) if self.needs_stored else ()
        return State(state.step, state.params, state.optimizer, state.average, copied, stored)
