"""Servers from PyPI, which were written for asyncio, on shardnet without a changed line."""
