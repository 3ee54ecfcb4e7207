"""A renderer of street scenes as security cameras see them, with labels: real input that needs no download."""
