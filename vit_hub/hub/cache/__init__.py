"""The files kept on this machine: where they are, what they should be, what can go."""
