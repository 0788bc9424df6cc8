"""Tokenizers of published models: from the folder of a checkpoint, from the metadata of a GGUF file, into a folder.

What they make is a `jaxformer.text.subwords.Subwords`.
"""

from jaxformer.pretrained.tokenizers.folder import from_folder, save_tokenizer
from jaxformer.pretrained.tokenizers.ggml import from_gguf

__all__ = ["from_folder", "from_gguf", "save_tokenizer"]
