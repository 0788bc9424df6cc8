"""Files of weights as named tensors, whoever wrote them and for whichever model.

`open_folder` reads what Hugging Face repositories hold (safetensors, or PyTorch's pickles without running
them; in one file or in shards), `open_gguf` what llama.cpp reads, quantised or not. Either gives a `Source`:
every name, shape and dtype from the headers alone, then one tensor at a time. What a name means for a model
is not known here. Any bytes at all give the tensors that they say or a ValueError that names the file.
"""

from jaxformer.pretrained.formats.folder import open_folder
from jaxformer.pretrained.formats.ggufs import is_gguf, open_gguf
from jaxformer.pretrained.formats.source import Source, Tensor

__all__ = ["Source", "Tensor", "is_gguf", "open_folder", "open_gguf"]
