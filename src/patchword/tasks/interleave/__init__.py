"""Few-shot captions and answers from documents of pictures and texts."""
