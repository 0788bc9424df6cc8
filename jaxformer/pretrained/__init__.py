"""Models on disk: jaxformer's own folders, and the published models of Hugging Face and llama.cpp.

`load` reads any of them; `checkpoint.save` and `export` write them. `formats` reads files of weights, `families` maps
each architecture's tensor names and config fields to jaxformer's, `tokenizers` reads vocabularies, `location` and `hub`
find the files.
"""
