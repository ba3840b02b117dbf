"""One file per published idea, read top to bottom like its paper; folders only group them."""
