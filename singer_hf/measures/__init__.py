"""Measures as plain functions, which do not import evaluate; `singer_hf.metrics` are its modules around them."""
