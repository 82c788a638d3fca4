"""Parts of the engine, each alone: `make bench-micro`. Compare within one run; the machine's mood moves all of them."""
