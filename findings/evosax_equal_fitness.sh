#!/usr/bin/env bash
# evosax 0.3.2: CMA-ES where all candidates are equally good, as where every one keeps every request in time.
#
# A good guess: a generation that tells nothing changes nothing, or the step size drifts as it does on noise,
# where no candidate is better either; published CMA-ES even widens its search on a plateau.
# Instead: equal candidates get their mean rank, rounded down, and all of them the one weight of that rank, so the
# weights no longer sum to 1: the mean hardly moves, the evolution path dies out, and the step size falls by a
# quarter in each generation, in CMA_ES and Sep_CMA_ES. A few dozen generations on a plateau end the search: when
# the candidates differ again, it is too narrow to follow.
# Add a little noise to the fitness, or a criterion that breaks ties.
# Source: evosax/core/fitness_shaping.py (_rank_fitness: rankdata with means of ties, then
# `ranks.astype(jnp.int32)` as an index in weights_fitness_shaping_fn).
#
# Seen:
#   evosax 0.3.2, jax 0.10.2
#   CMA_ES, equal fitness: step size after 60 generations, 1 at first: 4.9e-09
#   CMA_ES, random fitness: step size after 60 generations, 1 at first: 1.3e+00
#   CMA_ES: distance to the best, 120 generations of slope; 60 equal, then 60: [0.0, 5.18]
#   Sep_CMA_ES, equal fitness: step size after 60 generations, 1 at first: 3.3e-09
#   Sep_CMA_ES, random fitness: step size after 60 generations, 1 at first: 9.7e-01
#   Sep_CMA_ES: distance to the best, 120 generations of slope; 60 equal, then 60: [0.0, 5.19]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install jax==0.10.2 jaxlib==0.10.2 evosax==0.3.2
observe <<'PROGRAM'
import jax
import jax.numpy as jnp
import numpy as np
from evosax import algorithms
from finding import shown, versions

versions("evosax", "jax")
START, CANDIDATES, GENERATIONS = jnp.zeros(3), 16, 60


def search(algorithm, fitness_of):
    """Run generations by `fitness_of(key, number, candidates)`; the step sizes and the last mean."""
    es = getattr(algorithms, algorithm)(population_size=CANDIDATES, solution=START)
    params = es.default_params

    def generation(state, key_and_number):
        key, number = key_and_number
        ask, tell, noise = jax.random.split(key, 3)
        candidates, state = es.ask(ask, state, params)
        state, _ = es.tell(tell, candidates, fitness_of(noise, number, candidates), state, params)
        return state, jnp.mean(state.std)

    def run(seed):
        key = jax.random.key(seed)
        keys = jax.random.split(key, 2 * GENERATIONS)
        state, std = jax.lax.scan(generation, es.init(key, START, params), (keys, jnp.arange(2 * GENERATIONS)))
        return std, state.mean

    return jax.vmap(run)(jnp.arange(8))


def equal(key, number, candidates):
    return jnp.ones(CANDIDATES)


def noise(key, number, candidates):
    return jax.random.normal(key, (CANDIDATES,))


def slope(key, number, candidates):
    return jnp.sum(jnp.square(candidates - 3.0), -1)


def plateau_then_slope(key, number, candidates):
    return jnp.where(number < GENERATIONS, 1.0, slope(key, number, candidates))


for name in ("CMA_ES", "Sep_CMA_ES"):
    for kind, fitness_of, holds in (
        ("equal", equal, lambda std: std < 1e-6),
        ("random", noise, lambda std: std > 0.05),
    ):
        std = float(np.median(search(name, fitness_of)[0][:, GENERATIONS - 1]))
        shown(f"{name}, {kind} fitness: step size after {GENERATIONS} generations, 1 at first", f"{std:.1e}", holds(std))
    distance = [
        float(np.median(np.linalg.norm(np.asarray(search(name, fitness_of)[1]) - 3.0, axis=-1)))
        for fitness_of in (slope, plateau_then_slope)
    ]
    seen = [round(value, 2) for value in distance]
    what = f"{name}: distance to the best, {GENERATIONS * 2} generations of slope; {GENERATIONS} equal, then {GENERATIONS}"
    shown(what, seen, distance[0] < 0.01 and distance[1] > 4.0)
PROGRAM
