"""Encoders that learn without labels, or from captioned pictures."""
