"""The supervisor: forks the workers of a server, and sees to it that each shard has one.

`lifecycle` decides, with `reload` for all workers together; `system` asks the kernel, `ledger` keeps the board, `loop`
is what runs between them, and `supervisor` how it is called. Single-threaded for life, because every respawn forks from
it; nothing in here runs the user's code, or imports what a worker does not need, because every worker pays for what the
supervisor imports.
"""
