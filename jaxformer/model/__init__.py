"""The Transformer: a pure function of parameters and tokens. `README.md` beside this file says where to start."""
