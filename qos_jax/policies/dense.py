"""Dense layers whose gradient is three plain products of matrices."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


@jax.custom_vjp
def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return rows [..., F] times a matrix [F, G], [..., G].

    Its gradient by the matrix is written as the product that a CPU multiplies without copying. JAX's own is
    the transpose of the other way round, for which XLA copies the gradient by columns and computes it again.
    """
    return jnp.tensordot(rows, kernel, 1)


def _product_and_operands(
    rows: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return the product, and what its gradient reads."""
    return jnp.tensordot(rows, kernel, 1), (rows, kernel)


def _product_gradient(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return the gradients of rows and matrix from that of the product."""
    rows, kernel = operands
    count = math.prod(rows.shape[:-1])
    flat, of_flat = rows.reshape(count, rows.shape[-1]), gradient.reshape(count, gradient.shape[-1])
    of_kernel = jax.lax.dot_general(flat, of_flat, (((0,), (0,)), ((), ())))
    of_rows = jax.lax.dot_general(gradient, kernel, (((gradient.ndim - 1,), (1,)), ((), ())))
    return of_rows, of_kernel


product.defvjp(_product_and_operands, _product_gradient)


class Dense(nn.Module):
    """``flax.linen.Dense`` of parts side by side, with its parameters, which multiplies each part by itself.

    So a part that many rows share, of length 1 along their axis, is multiplied once.
    """

    features: int  # width of the output
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, *parts: jax.Array) -> jax.Array:
        """Return the layer's output, [..., features]; parts are [..., F] each, alike or 1 but for F."""
        widths = [part.shape[-1] for part in parts]
        kernel = self.param("kernel", self.kernel_init, (sum(widths), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        total = bias.reshape((1,) * (parts[0].ndim - 1) + (-1,))
        start = 0
        for part, width in zip(parts, widths, strict=True):
            total = total + product(part, kernel[start : start + width])
            start += width
        return total
