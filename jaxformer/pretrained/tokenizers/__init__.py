"""Tokenizers of published models, read from a checkpoint's folder or a GGUF file's metadata as a `Subwords`."""

from jaxformer.pretrained.tokenizers.folder import from_folder, save_tokenizer
from jaxformer.pretrained.tokenizers.ggml import from_gguf

__all__ = ["from_folder", "from_gguf", "save_tokenizer"]
