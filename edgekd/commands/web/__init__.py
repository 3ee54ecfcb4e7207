"""The pages of `edgekd ui`, which show result folders. Nothing is written, and nothing leaves the machine."""
