"""The network: a transformers backbone cut in two, a mixer in the middle."""
