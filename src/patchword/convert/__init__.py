"""Weights of public code, read into the models of this package."""
