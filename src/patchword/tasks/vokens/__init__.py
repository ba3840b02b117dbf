"""A picture for each word of a text, in its context."""
