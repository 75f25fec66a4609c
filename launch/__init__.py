"""The absl launchers: flags to a frozen config, then one call."""
