"""LTX-2: a transformer that makes picture and sound together, and what is around it."""
