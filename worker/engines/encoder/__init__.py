"""Vectors and scores of texts: sentence-transformers models, encoders, cross-encoders."""
