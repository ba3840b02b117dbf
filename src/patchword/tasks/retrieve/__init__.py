"""Two towers: pictures found by text, and texts by pictures."""
