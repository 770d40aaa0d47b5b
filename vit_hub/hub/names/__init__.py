"""Names and addresses of weights: what they stand for, without asking anybody."""
