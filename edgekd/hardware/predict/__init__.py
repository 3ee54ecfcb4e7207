"""How long a network takes on a device that is not at hand, and what energy: predicted, with an interval."""
