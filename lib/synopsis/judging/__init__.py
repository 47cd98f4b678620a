"""Pairwise judging: which of two runs wrote the better output, told in both orders, resumable, errors never ties."""
