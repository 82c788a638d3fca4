"""Reading what the exporter says: the test kit's way, under the names that process tests use."""

from shardnet.testing.samples import Samples, get, get_json, parse

__all__ = ["Samples", "get", "get_json", "parse"]
