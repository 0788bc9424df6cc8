"""Text as tokens: characters, words, bytes, and the subwords of published models."""
