"""hgrnx: train, distil and evaluate HGRN2 language models on small amounts of text."""

__version__ = "0.1.0"
