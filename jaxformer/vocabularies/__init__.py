"""Tokenizers of published models: from the folder of a checkpoint, from the metadata of a GGUF file, into a folder.

What they make is a `jaxformer.subwords.Subwords`; `classes` holds what transformers' tokenizer classes change.
"""

from jaxformer.vocabularies.folder import from_folder, save_tokenizer
from jaxformer.vocabularies.ggml import from_gguf

__all__ = ["from_folder", "from_gguf", "save_tokenizer"]
