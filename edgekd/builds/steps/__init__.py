"""The compression steps: one file for each, with its declaration and the function that runs it in a build."""
