"""Tests of what sees its whole batch under vmap: the maximum of all lanes, and one bound for all."""

import jax
import jax.numpy as jnp
import numpy as np

from qos_jax.routing.whole_batch import max_over_batch, whole_batch

VALUES = jnp.array([[3, 1, 2], [5, 0, 4]], jnp.int32)


def test_greatest_is_the_value_itself_alone_and_that_of_all_lanes_under_vmap():
    assert int(max_over_batch(VALUES[0, 1])) == 1
    np.testing.assert_array_equal(jax.vmap(max_over_batch)(VALUES), [[5, 1, 4]] * 2)
    np.testing.assert_array_equal(jax.vmap(jax.vmap(max_over_batch))(VALUES), [[5] * 3] * 2)


def test_greatest_of_what_is_the_same_in_all_lanes_is_that():
    lanes = jax.vmap(lambda x: x + max_over_batch(jnp.int32(7)))(VALUES[0])
    np.testing.assert_array_equal(lanes, VALUES[0] + 7)


def test_a_loop_by_the_greatest_runs_as_often_in_every_lane():
    def rounds(limit):
        return jax.lax.fori_loop(0, max_over_batch(limit), lambda _, count: count + 1, jnp.int32(0))

    np.testing.assert_array_equal(jax.jit(jax.vmap(rounds))(VALUES[0]), [3, 3, 3])


def test_a_function_is_called_once_with_all_lanes():
    shapes = []

    @whole_batch
    def total(values, scale):
        shapes.append((values.shape, scale.shape))
        return values * scale

    doubled = jax.vmap(total, (0, None))(VALUES, jnp.int32(2) * jnp.ones(3, jnp.int32))
    np.testing.assert_array_equal(doubled, 2 * VALUES)
    assert shapes[-1] == ((2, 3), (2, 3))
