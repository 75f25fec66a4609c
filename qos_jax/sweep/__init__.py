"""Grids of scenarios, and the search for the largest load that meets a target."""
