"""Losses of a student that is trained beside a teacher, and how they are weighted."""
