"""`shardnet top`: a server's shards, live.

Everything is read off the board, the shared memory that all processes of a server count in: the workers have no part in
it. `model` makes figures of two looks at the board, `text` makes lines of figures, `live` is the terminal.
"""
