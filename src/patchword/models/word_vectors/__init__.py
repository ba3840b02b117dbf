"""Vectors of words and sentences that know pictures."""
