"""Attention over prefixes that many questions share: pages, kernels, captured steps."""
