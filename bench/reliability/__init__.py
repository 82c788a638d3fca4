"""The loss harness of `shardnet chaos`, on shardnet and on other servers that have several workers on one port."""
