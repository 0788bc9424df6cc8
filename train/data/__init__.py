"""What a run trains on: texts, token files and toy tasks, and the batches drawn from them."""
