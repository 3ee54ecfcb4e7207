"""Distillation: losses between a student and its teacher, their weights, and the training."""
