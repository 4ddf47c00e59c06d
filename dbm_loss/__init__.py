"""Difficulty-aware Balancing Margin Loss for Long-Tailed Recognition (AAAI 2025)."""
