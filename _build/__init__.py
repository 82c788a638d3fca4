"""Building shardnet: setuptools, and the compiled engine before it. docs/building.md tells what for whom.

`backend` is what pip and `python -m build` call, `__main__` what `make engine` calls. Nothing of it is installed.
"""
