"""Textures made from a sample."""
