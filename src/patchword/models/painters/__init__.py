"""From text to pictures."""
