"""Certificates: what a model computes here, beside its own exact numbers, its peers', its authors' and its origin."""
