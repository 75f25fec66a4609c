"""The run small enough to work out by hand, which tests of the simulation have too."""

from tests.simulation.conftest import limit_s, profile, records, totals

__all__ = ["limit_s", "profile", "records", "totals"]
