"""`python -m shardnet`."""

from shardnet.cli import main

main()
