"""The stages of a build, one file for each."""
