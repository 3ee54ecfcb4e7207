"""How accurate and how fast a detector is, why, and the pages that say so."""
