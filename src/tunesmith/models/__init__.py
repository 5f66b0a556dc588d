"""Models: loading, structure, likelihoods, generation, parity. The only place besides methods that knows peft."""

import os

PRODUCTS_KEPT = "128"
"""Matrix products whose machine code oneDNN and PyTorch keep, each about 0.7 MB. A step of LoRA has some 50 for each
length of a pack, which every block uses again; lengths are ever new, so with the 1,024 that they keep by themselves a
training grows by more than half a gigabyte."""

for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):  # read when the first product is made
    os.environ.setdefault(_name, PRODUCTS_KEPT)
