"""Tensors: text to embeddings, noise to latents, latents to frames. Opens no socket."""
