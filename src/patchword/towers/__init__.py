"""Pictures or texts into features; weights that come in installed packages."""
