"""What ships with Tunesmith: the base model, the product manual with its questions."""
