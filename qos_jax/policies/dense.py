"""Dense layers of any leading axes, as plain products of matrices."""

from __future__ import annotations

import math

import jax
from flax import linen as nn


def product(rows: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return rows [..., F] times a matrix [F, G], [..., G].

    All leading axes are one axis of the product: of several, XLA copies the gradient by columns on a CPU, and
    computes it once more as it does, for the matrix's own gradient (``findings/jax_dense_leading_axes.sh``).
    """
    flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    return (flat @ kernel).reshape(*rows.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """``flax.linen.Dense`` of parts side by side, with its parameters, which multiplies each part by itself.

    So a part that many rows share, of length 1 along their axis, is multiplied once.
    """

    features: int  # width of the output
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()  # of all parts' rows together

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
