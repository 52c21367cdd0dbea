"""The ways out: one file for each kind, and the registry from URL to exit."""
