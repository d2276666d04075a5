"""An attribute that is computed when it is first asked for."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


class computed(Generic[T]):
    """As `functools.cached_property`, but without the lock that Python 3.11's takes: torch cannot compile that."""

    def __init__(self, compute: Callable[..., T]):
        self.compute = compute
        self.__doc__ = compute.__doc__

    @overload
    def __get__(self, thing: None, owner: type) -> "computed[T]": ...
    @overload
    def __get__(self, thing: object, owner: type) -> T: ...
    def __get__(self, thing, owner) -> Any:
        if thing is None:
            return self
        value = self.compute(thing)
        setattr(thing, self.compute.__name__, value)  # found before this from now on
        return value
