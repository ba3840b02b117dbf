"""Labels of pictures with texts."""
