"""Shared with the device: rules, formats and files. Python 3.8, standard library and NumPy."""
