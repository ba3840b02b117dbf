"""Towers trained without labels, or from captioned pictures."""
