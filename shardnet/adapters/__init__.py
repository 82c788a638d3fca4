"""Adapters: connections that show asyncio's faces, for servers that were written for asyncio."""

from shardnet.adapters.protocol import ProtocolConnection
from shardnet.adapters.streams import StreamsConnection

__all__ = ["ProtocolConnection", "StreamsConnection"]
