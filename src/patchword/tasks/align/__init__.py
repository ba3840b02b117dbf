"""Alignment of patches and words (LAPS)."""
