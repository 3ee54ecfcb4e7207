"""The closed loop: a budget in, the recipe that meets it out."""
