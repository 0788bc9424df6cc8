"""Files of weights, read as named tensors. This package does not know what a name means for a model.

`open_folder` reads Hugging Face's formats: safetensors, or PyTorch's pickles without executing them, in one file or in
shards. `open_gguf` reads llama.cpp's, quantised or not. Both return a `Source`, which has every name, shape and dtype
from the headers alone and reads one tensor at a time. A damaged file raises a ValueError that names it.
"""

from jaxformer.pretrained.formats.folder import open_folder
from jaxformer.pretrained.formats.gguf_file import is_gguf, open_gguf
from jaxformer.pretrained.formats.source import Source, Tensor

__all__ = ["Source", "Tensor", "is_gguf", "open_folder", "open_gguf"]
