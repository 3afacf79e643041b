"""Models: finding, loading, understanding, sampling and adapting them."""

import os

# oneDNN keeps a kernel for every shape that it has met, 1,024 of them: on processors with
# matrix units up to a gigabyte, for shapes that hardly come again. It reads this once,
# before the first product.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
