"""A config file as a running service: processes, signals, reload."""
