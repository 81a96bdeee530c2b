"""Textures made from samples."""
