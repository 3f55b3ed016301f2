"""One clip, from a request to a file."""
