"""Optimisers: how the gradients of a step change what trains."""
