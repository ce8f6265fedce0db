"""Ternary weights, {-1, 0, 1}: encodings, and matmul by table lookup as in TeLLMe (arXiv:2510.15926)."""
