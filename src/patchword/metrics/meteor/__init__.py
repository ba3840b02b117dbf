"""METEOR: stems, synonyms and paraphrases, alignment, score."""
