"""Dropout's Dream Land: a policy is evolved in a learned world model whose dropout stays on."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax import Array

from experiments.papers import training
from experiments.worlds import control
from mlfuncs import timeseries, world_model

VECTORISED = True


class Prediction(NamedTuple):
    """Mixtures [..., Z, K] of the next observation, and the logit [...] of the end of the episode."""

    log_weights: Array
    means: Array
    log_scales: Array
    done: Array


def prepare(shared: ml_collections.ConfigDict, key: Array) -> dict[str, Any]:
    """The world model, of few episodes of random actions."""
    data_key, init_key, order_key, mask_key = jax.random.split(_keys(key)[0], 4)
    task = control.point_on_hill(**shared.task)
    episodes = control.uniform_actions(data_key, task, shared.episodes, horizon=shared.length)
    sizes = {"latent_size": task.observation_size, "action_size": task.action_size, "hidden_size": shared.hidden}

    def loss(params: Any, rows: Array, key: Array) -> Array:
        given = jax.tree.map(lambda x: x[rows], episodes)
        # One pair of masks a sequence, the same at all of its steps.
        masks = world_model.world_model_masks(
            key, **sizes, batch_shape=(rows.size,), input_rate=shared.rate, hidden_rate=shared.rate
        )
        inputs = jnp.concatenate([given["observations"][:, :-1], given["actions"]], axis=-1)

        def step(carry: Any, x: Array) -> Any:
            carry = world_model.masked_lstm_step(params["lstm"], carry, x, *masks)
            return carry, carry["h"]

        _, hidden = jax.lax.scan(step, _at_rest(rows.size, shared.hidden), jnp.moveaxis(inputs, 1, 0))
        found = _predict(params, jnp.moveaxis(hidden, 0, 1), shared.components)
        surprise = world_model.mixture_density_negative_log_likelihood(*found[:3], given["observations"][:, 1:])
        ends = optax.losses.sigmoid_binary_cross_entropy(found.done, given["done"].astype(jnp.float32))
        return timeseries.masked_mean(surprise, given["valid"]) + timeseries.masked_mean(ends, given["valid"])

    rows = training.batches(order_key, shared.episodes, shared.batch, shared.steps)
    optimizer = optax.chain(optax.clip(shared.clip), optax.adam(shared.learning_rate))
    params, losses, _ = training.fit(loss, _initial(init_key, task, shared), optimizer, rows, mask_key)
    return {
        "model": params,
        "random_return": jnp.mean(jnp.sum(episodes["rewards"] * episodes["valid"], axis=1)),
        "loss": jnp.mean(losses[-max(1, shared.steps // 10) :]),
    }


def run(config: ml_collections.ConfigDict, key: Array, shared: dict[str, Any]) -> dict[str, Array]:
    """Evolves a linear policy in the dream, and measures it there and in the real task."""
    fixed, model = config.shared, shared["model"]
    task = control.point_on_hill(**fixed.task)
    evolve_key, dream_key, real_key = jax.random.split(_keys(key)[1], 3)

    def dream_return(key: Array, policy: Array, episodes: int) -> Array:
        """Mean over episodes, each with masks of its own."""
        start_key, rollout_key = jax.random.split(key)

        def step(key: Array, state: Any, action: Array, masks: Any) -> tuple[Any, Array, Array]:
            next_key, done_key = jax.random.split(key)
            inputs = jnp.concatenate([state["z"], action], axis=-1)
            carry = world_model.masked_lstm_step(model["lstm"], {"h": state["h"], "c": state["c"]}, inputs, *masks)
            found = _predict(model, carry["h"], fixed.components)
            z = world_model.sample_mixture_density(next_key, *found[:3])
            done = jax.random.bernoulli(done_key, jax.nn.sigmoid(found.done))
            return {"z": z, **carry}, jnp.ones(episodes), done

        def sample_masks(key: Array) -> tuple[Array, Array]:
            return world_model.world_model_masks(
                key,
                latent_size=task.observation_size,
                action_size=task.action_size,
                hidden_size=fixed.hidden,
                batch_shape=(episodes,),
                input_rate=config.dream_rate,
                hidden_rate=config.dream_rate,
            )

        first = jax.vmap(lambda key: task.observe(task.reset(key)))(jax.random.split(start_key, episodes))
        dreamt = world_model.dream_rollout(
            rollout_key,
            step,
            lambda state: _act(policy, state["z"], state["h"]),
            {"z": first, **_at_rest(episodes, fixed.hidden)},
            sample_masks,
            horizon=fixed.horizon,
            resample=config.resample,
        )
        return jnp.sum(dreamt["rewards"] * dreamt["valid"]) / episodes

    def real_return(key: Array, policy: Array) -> Array:
        def act(key: Array, carry: Any, observation: Array) -> tuple[Array, Any]:
            del key
            z = observation[None]
            action = _act(policy, z, carry["h"])
            inputs = jnp.concatenate([z, action], axis=-1)
            # The features of the policy come from the world model without its dropout.
            carry = world_model.masked_lstm_step(model["lstm"], carry, inputs, jnp.ones((1, 1)), jnp.ones((1, 1)))
            return action[0], carry

        lived = control.rollout(key, task, act, _at_rest(1, fixed.hidden), horizon=fixed.horizon)
        return jnp.sum(lived["rewards"] * lived["valid"])

    weights = task.observation_size + fixed.hidden + 1
    policy = evolve(
        evolve_key,
        lambda key, policy: dream_return(key, policy, config.dreams),
        jnp.zeros((weights, task.action_size)),
        generations=config.generations,
        population=config.population,
        deviation=config.deviation,
        learning_rate=config.learning_rate,
    )
    dream = dream_return(dream_key, policy, config.trials)
    real = jnp.mean(jax.vmap(lambda key: real_return(key, policy))(jax.random.split(real_key, config.trials)))
    return {
        "dream_return": dream,
        "real_return": real,
        "gap": dream - real,
        "absolute_gap": jnp.abs(dream - real),
        "random_return": shared["random_return"],
        "model_loss": shared["loss"],
    }


def evolve(
    key: Array,
    fitness: Any,
    start: Array,
    *,
    generations: int,
    population: int,
    deviation: float,
    learning_rate: float,
) -> Array:
    """Evolution strategy with mirrored perturbations and centred ranks; `fitness(key, policy) -> scalar` is maximised.

    All of one generation get the same key, hence live through the same chances.
    """
    if population % 2:
        raise ValueError(f"population must be even, one perturbation and its mirror image, got {population}")
    optimizer = optax.adam(learning_rate)

    def generation(carry: Any, index: Array) -> tuple[Any, None]:
        policy, state = carry
        noise_key, luck_key = jax.random.split(jax.random.fold_in(key, index))
        half = jax.random.normal(noise_key, (population // 2, *start.shape))
        noise = jnp.concatenate([half, -half])
        scores = jax.vmap(lambda perturbation: fitness(luck_key, policy + deviation * perturbation))(noise)
        # Ties share their rank: where nothing differs, nothing moves.
        below = jnp.sum(scores[:, None] > scores[None], axis=1) + 0.5 * jnp.sum(scores[:, None] == scores[None], axis=1)
        utility = below / population - 0.5
        ascent = jnp.tensordot(utility, noise, axes=1) / (population * deviation)
        updates, state = optimizer.update(-ascent, state, policy)
        return (optax.apply_updates(policy, updates), state), None

    (policy, _), _ = jax.lax.scan(generation, (start, optimizer.init(start)), jnp.arange(generations))
    return policy


def _keys(key: Array) -> tuple[Array, Array]:
    """Of the world model, and of what is done with it."""
    model_key, policy_key = jax.random.split(key)
    return model_key, policy_key


def _initial(key: Array, task: control.Task, shared: ml_collections.ConfigDict) -> Any:
    hidden, inputs = shared.hidden, task.observation_size + task.action_size
    outputs = 3 * task.observation_size * shared.components + 1
    draws = jax.random.truncated_normal(key, -2, 2, (inputs + hidden, 4 * hidden + outputs))
    kernel, recurrent = jnp.split(draws[:, : 4 * hidden], [inputs])
    forget = jnp.zeros(4 * hidden).at[hidden : 2 * hidden].set(1.0)  # gates i, f, g, o; remembers at first
    return {
        "lstm": {"kernel": kernel / inputs**0.5, "recurrent_kernel": recurrent / hidden**0.5, "bias": forget},
        "head": {"kernel": draws[inputs:, 4 * hidden :] / hidden**0.5, "bias": jnp.zeros(outputs)},
    }


def _at_rest(batch: int, hidden: int) -> dict[str, Array]:
    return {"h": jnp.zeros((batch, hidden)), "c": jnp.zeros((batch, hidden))}


def _predict(params: Any, hidden: Array, components: int) -> Prediction:
    outputs = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    mixture = outputs[..., :-1].reshape(*outputs.shape[:-1], 3, -1, components)
    return Prediction(mixture[..., 0, :, :], mixture[..., 1, :, :], mixture[..., 2, :, :], outputs[..., -1])


def _act(policy: Array, z: Array, h: Array) -> Array:
    """A linear policy of observation and hidden state, clipped as the task does: the model knows no other actions."""
    return jnp.clip(jnp.concatenate([z, h], axis=-1) @ policy[:-1] + policy[-1], -1, 1)
