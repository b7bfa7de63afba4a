"""Backbones: the contract (`base`), the names (`registry`), and one module per kind of tower."""
