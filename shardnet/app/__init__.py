"""Apps: what `module:name` stands for, which kind of handler it is, and in one line what is wrong with it."""

from shardnet.app.handler import FORMS, App, Handler, Kind
from shardnet.app.kinds import describe, first_line, resolve, try_factory
from shardnet.app.loading import load, split_name

__all__ = ["FORMS", "App", "Handler", "Kind", "describe", "first_line", "load", "resolve", "split_name", "try_factory"]
