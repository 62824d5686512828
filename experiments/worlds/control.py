"""Small control tasks in pure JAX, and episodes in them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Task(NamedTuple):
    """An environment of pure functions.

    `reset(key) -> state`; `step(key, state, action) -> (state, reward, done)`; `observe(state) -> [observation_size]`.
    Actions [action_size] are clipped to [-1, 1].
    """

    reset: Callable[[Array], Any]
    step: Callable[[Array, Any, Array], tuple[Any, Array, Array]]
    observe: Callable[[Any], Array]
    observation_size: int
    action_size: int


def point_on_hill(
    *,
    interval: float = 0.1,
    slope: float = 4.0,
    force: float = 2.0,
    gust: float = 0.15,
    radius: float = 1.0,
    start: float = 0.1,
    velocity_seen: bool = True,
) -> Task:
    r"""A point in the plane on top of a hill, pushed about by gusts. It earns 1 a step until it leaves the circle.

    With position x, velocity v and action a: :math:`v' = v + \Delta (s x + f a) + g \varepsilon` and
    :math:`x' = x + \Delta v'`.

    Args:
      interval: the time of one step.
      slope: s > 0, how steeply the hill falls: left alone, distances grow as exp(sqrt(s) t).
      force: f, what an action of 1 accelerates. Beyond f / s from the top a point at rest can't be brought back.
      gust: g, standard deviation of what every step adds to the velocity.
      radius: of the circle.
      start: positions and velocities begin uniformly in [-start, start].
      velocity_seen: whether observations are positions and velocities [4], or positions [2] alone.
    """

    def reset(key: Array) -> Array:
        return jax.random.uniform(key, (4,), minval=-start, maxval=start)

    def step(key: Array, state: Array, action: Array) -> tuple[Array, Array, Array]:
        position, velocity = state[:2], state[2:]
        push = slope * position + force * jnp.clip(action, -1, 1)
        velocity = velocity + interval * push + gust * jax.random.normal(key, (2,))
        position = position + interval * velocity
        return jnp.concatenate([position, velocity]), jnp.float32(1), jnp.sum(position**2) > radius**2

    size = 4 if velocity_seen else 2
    return Task(reset, step, lambda state: state[:size], observation_size=size, action_size=2)


def rollout(
    key: Array,
    task: Task,
    act: Callable[[Array, Any, Array], tuple[Array, Any]],
    memory: Any,
    *,
    horizon: int,
) -> dict[str, Array]:
    """One episode; many by `jax.vmap` over keys.

    Args:
      key: a PRNG key.
      task: where to act.
      act: `act(key, memory, observation) -> (action, memory)`.
      memory: pytree that `act` keeps during the episode, as it is before the first step.
      horizon: T steps, which are simulated whether or not the episode has ended.

    Returns:
      {"observations" [T + 1, Z], "actions" [T, A], "rewards" [T], "done" [T], "valid" [T]}; valid is True up to and
      including the step that ends the episode.
    """
    reset_key, act_key, step_key = jax.random.split(key, 3)

    def advance(carry: Any, t: Array) -> tuple[Any, dict[str, Array]]:
        state, memory, alive = carry
        observation = task.observe(state)
        action, memory = act(jax.random.fold_in(act_key, t), memory, observation)
        state, reward, done = task.step(jax.random.fold_in(step_key, t), state, action)
        record = {"observations": observation, "actions": action, "rewards": reward, "done": done, "valid": alive}
        return (state, memory, alive & ~done), record

    begin = (task.reset(reset_key), memory, jnp.bool_(True))
    (last, _, _), records = jax.lax.scan(advance, begin, jnp.arange(horizon))
    observations = jnp.concatenate([records["observations"], task.observe(last)[None]])
    return {**records, "observations": observations}


def uniform_actions(key: Array, task: Task, episodes: int, *, horizon: int) -> dict[str, Array]:
    """Episodes [N, T, ...] of a policy that acts uniformly at random, as `rollout` gives them."""

    def act(key: Array, memory: Any, observation: Array) -> tuple[Array, Any]:
        del observation
        return jax.random.uniform(key, (task.action_size,), minval=-1, maxval=1), memory

    return jax.vmap(lambda key: rollout(key, task, act, (), horizon=horizon))(jax.random.split(key, episodes))
