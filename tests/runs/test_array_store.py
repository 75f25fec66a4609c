"""Any pytree of arrays goes to disk and back bit for bit."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qos_jax.runs.array_store import host_leaves, layout_difference, read_leaves, rebuild, write_leaves
from tests.runs.states import Inner, assert_same, state

DTYPES = [np.float32, np.int32, np.uint32, np.bool_, np.float16, jnp.bfloat16, np.int8, np.uint8]


@st.composite
def arrays(draw):
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = int(np.prod(shape)) * dtype.itemsize
    raw = np.frombuffer(draw(st.binary(min_size=size, max_size=size)), np.uint8)
    raw = raw % 2 if dtype == np.bool_ else raw  # else any bits, NaNs of all kinds among them
    array = raw.view(dtype).reshape(shape)
    return array if draw(st.booleans()) else jnp.asarray(array)


@st.composite
def keys(draw):
    impl = draw(st.sampled_from(["threefry2x32", "rbg", "unsafe_rbg"]))
    return jax.random.split(
        jax.random.key(draw(st.integers(0, 2**31 - 1)), impl=impl), draw(st.integers(1, 3))
    )


TREES = st.recursive(
    arrays() | keys() | st.none(),
    lambda inner: (
        st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.builds(Inner, inner, inner)
    ),
    max_leaves=6,
)


def there_and_back(tree, like=None):
    with tempfile.TemporaryDirectory() as folder:
        layout, leaves = host_leaves(tree)
        write_leaves(Path(folder) / "arrays", leaves)
        like = tree if like is None else like
        assert layout_difference(like, layout) is None
        return rebuild(like, layout, read_leaves(Path(folder) / "arrays", layout))


@settings(max_examples=25)
@given(TREES)
def test_every_bit_comes_back(tree):
    assert_same(there_and_back(tree), tree)


def test_shapes_are_all_it_needs_to_rebuild_a_state():
    assert_same(there_and_back(state(3), like=jax.eval_shape(state)), state(3))
    assert_same(there_and_back(None), None)


def test_a_restored_state_can_be_donated():
    restored = there_and_back(state(3), like=jax.eval_shape(state))
    donated = jax.jit(lambda x: jax.tree.map(jnp.copy, x), donate_argnums=0)(restored)
    assert_same(donated, state(3))


def test_a_field_that_moved_is_the_same_field():
    layout, leaves = host_leaves({"a": np.zeros(2), "b": np.ones(2)})
    assert_same(rebuild({"b": np.zeros(2), "a": np.zeros(2)}, layout[::-1], leaves[::-1])["b"], np.ones(2))


@pytest.mark.parametrize(
    ("like", "difference"),
    [
        ({"a": np.zeros((2, 3), np.float32)}, "['a']: shape [2] in the checkpoint, [2, 3] here"),
        ({"a": np.zeros(2, np.int32)}, "['a']: dtype float32 in the checkpoint, int32 here"),
        ({}, "['a'] is in the checkpoint only"),
        ({"a": np.zeros(2, np.float32), "b": np.zeros(1)}, "['b'] is not in the checkpoint"),
        ({"a": jax.random.split(jax.random.key(0))}, "['a']: dtype float32 in the checkpoint, key<fry> here"),
    ],
)
def test_the_first_difference_is_named(like, difference):
    layout, _ = host_leaves({"a": np.zeros(2, np.float32)})
    assert layout_difference(like, layout) == difference


@pytest.mark.parametrize("leaf", [1, 0.5, "text", np.array(["text", None], object)])
def test_only_arrays_are_leaves(leaf):
    with pytest.raises(ValueError, match=r"leaf \['a'\] is no array"):
        host_leaves({"a": leaf})
