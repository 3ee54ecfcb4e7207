"""Bundles: what travels to the camera."""
