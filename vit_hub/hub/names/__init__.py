"""The meaning of names and addresses of weights; no network."""
