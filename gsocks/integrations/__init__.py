"""Adapters for libraries that make HTTP requests; each needs the extra of its name."""
