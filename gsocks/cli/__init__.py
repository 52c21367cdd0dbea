"""The commands of ``gsocks``: each raises ConfigError, or prints and returns its exit status."""
