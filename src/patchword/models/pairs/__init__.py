"""Pictures and texts in one space: which belongs to which."""
