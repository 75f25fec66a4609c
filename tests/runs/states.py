"""States of every kind of leaf and container that a learner may hold, and their comparison bit by bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct


@struct.dataclass
class Inner:
    ages_s: jax.Array
    live: jax.Array
    nothing: None = None
    label: str = struct.field(pytree_node=False, default="static")


@struct.dataclass
class State:
    params: dict
    optimiser: tuple
    key: jax.Array
    lanes: Inner
    updates: jax.Array


def params(step):
    kernel = jnp.arange(12, dtype=jnp.float32).reshape(3, 4) / 7 + step
    return {"params": {"actor": {"kernel": kernel, "bias": -jnp.ones(4)}, "empty": {}}}


def state(step=0):
    """Return a state that is a function of ``step`` in every part."""
    weights = params(step)
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.linear_schedule(1e-3, 0.0, 100)))
    return State(
        params=weights,
        optimiser=jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), optimiser.init(weights)),
        key=jax.random.key(step),
        lanes=Inner(
            ages_s=jnp.array([0.0, -0.0, jnp.inf, jnp.nan, 1e-45 * step], jnp.float32),
            live=jnp.arange(4) % 2 == step % 2,
        ),
        updates=jnp.uint32(step),
    )


def leaves(tree):
    """Return (type of key or of array, dtype, shape, bytes) of every leaf."""
    found = []
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            kind, leaf = str(leaf.dtype), jax.random.key_data(leaf)
        else:
            kind = "numpy" if isinstance(leaf, np.ndarray | np.generic) else "jax"
        array = np.asarray(leaf)
        found.append((kind, str(array.dtype), array.shape, array.tobytes()))
    return found


def assert_same(one, other):
    """Assert that two states are the same bit for bit, NaN, -0.0, None and containers included."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert leaves(one) == leaves(other)
