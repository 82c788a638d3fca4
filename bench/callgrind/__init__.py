"""Instructions per message: what one message of each handler kind costs in user space, counted and not timed.

A time on a shared machine is good to a few percent; this count is the same in every run, so that a change of a percent
is seen. Must not live here: anything that depends on a clock (see the suite above).
"""
