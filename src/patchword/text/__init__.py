"""Words and their ids, word pieces, the tokenizer of the metrics, names of classes."""
