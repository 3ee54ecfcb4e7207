"""Shipped recipes, one TOML each."""
