"""Settings: what can be set (`settings`), whether a value fits (`values`), where values are from (`layers`), and how
all of it is shown (`render`)."""

from shardnet.config.layers import FILE_NAME, PYPROJECT, Origin, Resolved, Source, resolve
from shardnet.config.settings import AUTO, DASH, OFF, Group, Settings, changed
from shardnet.config.values import SETTINGS, Kind, Setting, Unfit

__all__ = [
    "AUTO",
    "DASH",
    "FILE_NAME",
    "OFF",
    "PYPROJECT",
    "SETTINGS",
    "Group",
    "Kind",
    "Origin",
    "Resolved",
    "Setting",
    "Settings",
    "Source",
    "Unfit",
    "changed",
    "resolve",
]
