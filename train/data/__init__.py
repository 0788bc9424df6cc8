"""Training data: texts, token files and toy tasks, and the batches drawn from them."""
