"""The network: its config, its one implementation, the shapes of its tensors, and how it changes size."""
