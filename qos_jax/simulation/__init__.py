"""Many requests through one fleet: routed, recorded, measured."""
