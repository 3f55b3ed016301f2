"""A cache of the latest values."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(eq=False)
class LRUCache(Generic[Value]):
    """A cache of the latest values, the latest last."""

    max_size: int
    kept: OrderedDict[Hashable, Value] = field(default_factory=OrderedDict)

    def get(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        value = self.kept.pop(key) if key in self.kept else compute()
        self.kept[key] = value
        if len(self.kept) > self.max_size:
            self.kept.popitem(last=False)
        return value
