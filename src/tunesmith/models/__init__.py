"""Models: loading, structure, likelihoods, generation, parity. The only place besides methods that knows peft."""

import os

PRODUCTS_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128", "LRU_CACHE_CAPACITY": "32"}
"""Matrix products whose machine code oneDNN keeps, each about 0.7 MB, and those that PyTorch keeps of them. A step of
LoRA has some 50 for each length of a pack, which every block uses again; lengths are ever new, so with the 1,024 that
both keep by themselves a training grows by more than half a gigabyte."""

for _name, _number in PRODUCTS_KEPT.items():  # read when the first product is made
    os.environ.setdefault(_name, _number)
