"""The random models of ``tests.live.real``: their vocabulary, and layers and width of each."""

VOCABULARY = 2048
WORDS_FROM = 259  # tokens below are control or bytes
SHAPES = {"large": (8, 512), "small": (6, 320)}
