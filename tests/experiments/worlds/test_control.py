"""The point on the hill, and episodes: dynamics, ends, what is recorded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.worlds import control

KEY = jax.random.key(0)
SETTINGS = {"interval": 0.1, "slope": 4.0, "force": 2.0, "radius": 1.0, "start": 0.1}


@functools.cache
def task(gust=0.0, **settings):
    return control.point_on_hill(**{**SETTINGS, **settings}, gust=gust)


def test_a_step_by_hand():
    state = jnp.array([0.5, 0.0, 1.0, -1.0])
    after, reward, done = task().step(KEY, state, jnp.array([-0.5, 3.0]))  # 3 is clipped to 1
    # v' = (1 + 0.1 (2 - 1), -1 + 0.1 (0 + 2)), x' = x + 0.1 v'
    np.testing.assert_allclose(after, [0.61, -0.08, 1.1, -0.8], atol=1e-6)
    assert (float(reward), bool(done)) == (1.0, False)


def test_gusts():
    states = jax.vmap(lambda key: task(gust=0.2).step(key, jnp.zeros(4), jnp.zeros(2))[0])(jax.random.split(KEY, 4000))
    np.testing.assert_allclose(np.std(np.asarray(states), axis=0), [0.02, 0.02, 0.2, 0.2], rtol=0.05)
    assert abs(np.corrcoef(np.asarray(states[:, 2:]).T)[0, 1]) < 0.06


def test_the_end_is_beyond_the_circle():
    inside, outside = jnp.array([0.7, 0.7, 0.0, 0.0]), jnp.array([0.75, 0.75, 0.0, 0.0])
    assert not task(slope=0.0).step(KEY, inside, jnp.zeros(2))[2]
    assert task(slope=0.0).step(KEY, outside, jnp.zeros(2))[2]  # each coordinate alone is inside


def test_start():
    states = np.asarray(jax.vmap(task().reset)(jax.random.split(KEY, 1000)))
    assert 0.09 < np.abs(states).max() <= 0.1
    assert np.all(np.abs(states.mean(0)) < 0.01)


def test_records_of_an_episode():
    """An action counts how often it was asked: the policy's memory and its observations are those of the state."""

    def act(key, memory, observation):
        return jnp.stack([memory, observation[2]]), memory + 1

    found = control.rollout(KEY, task(), act, jnp.float32(0), horizon=30)
    shapes = {name: values.shape for name, values in found.items()}
    assert shapes == {"observations": (31, 4), "actions": (30, 2), "rewards": (30,), "done": (30,), "valid": (30,)}
    np.testing.assert_array_equal(found["actions"][:, 0], np.arange(30))
    np.testing.assert_array_equal(found["actions"][:, 1], found["observations"][:-1, 2])
    for t in (0, 7):
        after = task().step(KEY, found["observations"][t], found["actions"][t])[0]
        np.testing.assert_allclose(found["observations"][t + 1], after, rtol=1e-5)
    distance = np.linalg.norm(np.asarray(found["observations"])[1:, :2], axis=1)
    end = int(np.argmax(distance > 1))
    assert 0 < end < 29
    np.testing.assert_array_equal(found["done"], distance > 1)
    np.testing.assert_array_equal(found["valid"], np.arange(30) <= end)  # the step that ends it counts


def test_random_actions_differ_and_a_good_policy_lives_longer():
    world = task(gust=0.15)
    found = control.uniform_actions(KEY, world, 64, horizon=40)
    actions = np.asarray(found["actions"])
    assert actions.shape == (64, 40, 2)
    assert len(np.unique(actions)) > 5000
    assert np.abs(actions).max() <= 1

    def balance(key, memory, observation):
        return -3 * observation[:2] - 1.5 * observation[2:], memory

    keys = jax.random.split(KEY, 64)
    good = jax.vmap(lambda key: control.rollout(key, world, balance, (), horizon=40))(keys)
    lived, balanced = (float(jnp.mean(jnp.sum(x["valid"], axis=1))) for x in (found, good))
    assert lived < 30
    assert balanced > lived + 5


def test_velocity_can_be_hidden():
    state = jnp.arange(4.0)
    for seen, size in ((True, 4), (False, 2)):
        world = task(velocity_seen=seen)
        assert world.observation_size == size
        np.testing.assert_array_equal(world.observe(state), np.arange(size))
