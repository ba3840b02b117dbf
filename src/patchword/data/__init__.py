"""Pictures, captions, questions and labels: read, checked, stored, and made into batches."""
