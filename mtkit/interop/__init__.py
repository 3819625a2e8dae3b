"""Neighbours of mtkit: one module for each toolkit whose models come or go."""
