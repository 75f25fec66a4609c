import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from qos_jax.policies.dense import Dense, product


def drawn(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_a_product_and_its_gradients_are_those_of_tensordot(lead):
    rows, kernel = drawn(0, *lead, 4), drawn(1, 4, 3)

    def loss(multiply, rows, kernel):
        return jnp.sum(jnp.sin(multiply(rows, kernel)))

    def both(multiply):
        return jax.jit(jax.value_and_grad(lambda *given: loss(multiply, *given), argnums=(0, 1)))(
            rows, kernel
        )

    expected = both(lambda rows, kernel: jnp.tensordot(rows, kernel, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), both(product), expected)


def test_the_gradient_by_the_matrix_sums_over_one_axis():
    def gradient(multiply):
        loss = jax.grad(lambda kernel: jnp.sum(multiply(jnp.ones((7, 2, 4)), kernel)))
        return str(jax.make_jaxpr(loss)(jnp.ones((4, 3))))

    over_two = "dimension_numbers=(([0, 1], [0, 1])"
    assert over_two in gradient(lambda rows, kernel: jnp.tensordot(rows, kernel, 1))
    assert over_two not in gradient(product)


def test_a_layer_of_one_part_is_that_of_flax_with_the_same_parameters():
    rows = drawn(0, 6, 4)
    params = nn.Dense(3).init(jax.random.key(0), rows)
    jax.tree.map(np.testing.assert_array_equal, params, Dense(3).init(jax.random.key(0), rows))
    np.testing.assert_allclose(Dense(3).apply(params, rows), nn.Dense(3).apply(params, rows), rtol=1e-5)


def test_a_layer_of_parts_is_one_of_them_side_by_side():
    each, shared = drawn(0, 2, 5, 4), drawn(1, 2, 1, 3)
    together = jnp.concatenate([each, jnp.broadcast_to(shared, (2, 5, 3))], -1)
    params = Dense(6).init(jax.random.key(0), together)
    apart = Dense(6).apply(params, each, shared)
    np.testing.assert_allclose(apart, Dense(6).apply(params, together), rtol=1e-5, atol=1e-6)
