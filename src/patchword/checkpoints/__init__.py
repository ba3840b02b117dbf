"""Model folders: found, read, restored, and brought up from older formats; the state of a training."""
