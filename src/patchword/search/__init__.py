"""The index of pictures: written, brought up to date, checked, searched. Nothing here prints."""
