"""Number formats of stored weights and activations: pure NumPy, shared with the device."""
