"""Word vectors from texts and pictures."""
