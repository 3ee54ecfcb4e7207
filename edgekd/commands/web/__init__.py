"""The pages of `edgekd ui`: result folders, read and shown. Nothing is written, and nothing leaves the machine."""
