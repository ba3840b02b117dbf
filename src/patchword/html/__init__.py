"""The look of all pages, and pictures inside of them."""
