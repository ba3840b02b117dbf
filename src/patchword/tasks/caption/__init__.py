"""Captions: `model.py` leads from a photograph to its caption, `train.py` from a configuration to a loss."""
