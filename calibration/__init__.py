"""Calibration-set rules, one TOML each."""
