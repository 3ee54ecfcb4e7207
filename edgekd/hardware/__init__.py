"""What a target can run and how fast it is predicted to be."""
