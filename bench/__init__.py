"""The benchmark suite: reference servers, shardnet's handler kinds, one load generator, one table. `make bench`.

The theory: on a shared machine throughput wanders by tens of percent, while the CPU time that a server takes for a
message holds to a few. So that is what is compared; servers take turns within one run, many short runs each; and what
counts are ratios of medians within it, with the spread of the rounds beside them.

Who does what: `handlers` and `reference` (and `echo_epoll.c`) are what is measured, `servers` lists it and `running`
starts it (`building` makes what is in C); `load` runs `load.c`, and `proc` reads /proc; `measure` makes of one run one
record; `suite` does that in rounds, as far as `limits` allow, and `progress` tells; `records` keeps them, with the
`environment`; `stats`, `targets`, `report` and `plots` say what came of it; `__main__` is the command line.

Must not live here: anything that shardnet imports, or that a user of it needs.
"""
