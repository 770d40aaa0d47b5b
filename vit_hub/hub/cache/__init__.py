"""The files kept on this machine: their places, hashes, records, inventory and verification."""
