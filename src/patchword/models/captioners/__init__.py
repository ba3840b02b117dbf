"""From the features of a picture to words."""
