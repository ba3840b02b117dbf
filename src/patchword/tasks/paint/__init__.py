"""Pictures painted from text."""
