"""Models: loading, structure, likelihoods, generation, parity. The only place besides methods that knows peft."""
