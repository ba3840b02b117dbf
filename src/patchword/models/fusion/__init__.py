"""Pictures and texts together: answers, and labels of pairs."""
