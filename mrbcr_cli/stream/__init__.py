"""Blocks, ledger, engine and clusters: how an image streams through a method."""
