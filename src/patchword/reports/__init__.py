"""Pages and curves of runs, and runs side by side."""
