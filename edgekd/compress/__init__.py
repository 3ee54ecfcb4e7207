"""Compression steps: what makes a detector smaller and faster."""
