"""Models on disk: our folders, and the published models of Hugging Face and llama.cpp, read and written.

`load` and `export` are the doors; `checkpoint` is our own folder. `formats` reads files of weights, `families`
knows what each architecture calls its tensors and settings, `tokenizers` reads vocabularies, `hub` fetches.
"""
