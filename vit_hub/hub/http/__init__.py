"""Downloads from plain addresses: resumed, retried, hashed while streaming, complete under their name or absent."""
