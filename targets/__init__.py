"""One TOML per device."""
