"""The generator of sentence pairs inside the package, with which a first model is trained without any file."""
