"""Search for the recipe that meets a budget."""
