"""Engines of a slot: built, found again, self-tested and timed."""
