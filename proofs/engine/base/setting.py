"""A value that is another one for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class Setting(Generic[T]):
    """Something that holds outside of any ``with``, and may be set inside of one."""

    def __init__(self, value: T) -> None:
        self.value = value

    @contextmanager
    def set_to(self, value: T) -> Iterator[T]:
        """Let the value be another one inside; yield it."""
        before, self.value = self.value, value
        try:
            yield value
        finally:
            self.value = before
