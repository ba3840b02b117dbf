"""Readers of annotation files, each of one format, and what `check` says of them."""
