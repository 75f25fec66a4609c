"""Training runs: plan, presets, loop, learning curve, several seeds at once, ablation."""
