#!/usr/bin/env bash
# jax 0.10.2: arrival times as the cumulative sum of gaps, none of them negative.
#
# A good guess: a running sum of numbers that are not negative never falls, rounding or not: adding one rounded
# number after the other can't go down, and NumPy's does not.
# Instead: XLA sums in blocks, and an element is a block's prefix plus an offset, each rounded on its own; where
# two blocks meet the float32 sum can fall. Of a million exponential gaps 149 arrivals come before their
# predecessor, by up to 0.0625 s; `lax.associative_scan` does so as early as 100,000. A queue that assumes sorted
# arrivals, or searchsorted on them, is then wrong with no error. Sum in float64 on the host, carry the clock
# through a scan, or pass the result through `lax.cummax`.
# Source: jax/_src/lax/control_flow/loops.py (cumred_reduce_window_impl), lowered to XLA's reduce-window, which XLA
# rewrites into blocked scans; lax.associative_scan's documentation (the operation is taken as associative).
#
# Seen:
#   jax 0.10.2, jaxlib 0.10.2, numpy 2.4.6
#   smallest gap: 1.6689314179529902e-06
#   jnp.cumsum in float32: times that it falls, largest fall: (149, -0.0625)
#   lax.associative_scan in float32: (422, -0.125)
#   np.cumsum in float32: (0, 0.0)
#   a clock carried through lax.scan: (0, 0.0)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np
from finding import shown, versions

versions("jax", "jaxlib", "numpy")
gap_s = jax.random.exponential(jax.random.key(0), (1_000_000,))
shown("smallest gap", float(gap_s.min()), gap_s.min() >= 0)


def falls(arrival_s):
    step = np.diff(np.asarray(arrival_s))
    return int((step < 0).sum()), float(step.min())


summed = falls(jnp.cumsum(gap_s))
shown("jnp.cumsum in float32: times that it falls, largest fall", summed, summed[0] > 0)
scanned = falls(jax.lax.associative_scan(jnp.add, gap_s))
shown("lax.associative_scan in float32", scanned, scanned[0] > 0)
in_numpy = falls(np.cumsum(np.asarray(gap_s)))
shown("np.cumsum in float32", in_numpy, in_numpy[0] == 0)
carried = falls(jax.lax.scan(lambda clock, gap: (clock + gap,) * 2, jnp.float32(0), gap_s)[1])
shown("a clock carried through lax.scan", carried, carried[0] == 0)
PROGRAM
