"""The fence around a plugin's code: what escapes from it that is not a WsyncError becomes a PluginError naming plugin and version.

The text of a foreign exception is not passed on: it may hold a row's values or a secret. Its type is, and its cause stays for the log.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from wsync_sdk import PluginError, WsyncError

__all__ = ["called", "guarded"]

T = TypeVar("T")


def guarded(factory: Callable[[Any], Any], config: Any, label: str, kind: type[T]) -> T:
    """Make a connector and fence off each of its public methods, in place: it stays an instance of its own class.

    :param label: distribution and version, for messages.
    :raises PluginError: the factory failed, or gave something else than a `kind`.
    """
    made = _call(factory, label, f"opening a {kind.__name__.lower()}", config)
    if not isinstance(made, kind):
        raise PluginError(f"{label}: its factory gave no {kind.__name__}", next_step="report it to the connector's author")
    for name, method in inspect.getmembers(made, inspect.ismethod):
        if not name.startswith("_"):
            object.__setattr__(made, name, _fenced(method, label, name))
    return made


def called(function: Callable[..., Any], label: str, name: str, *arguments: Any) -> Any:
    """Call a function of a plugin, fenced off.

    :raises PluginError: it raised something that is not a WsyncError.
    """
    return _call(function, label, name, *arguments)


def _fenced(method: Callable[..., Any], label: str, name: str) -> Callable[..., Any]:
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _Fence(label, name):
                yield from method(*args, **kwargs)

        return stream

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return _call(method, label, name, *args, **kwargs)

    return call


def _call(function: Callable[..., Any], label: str, name: str, *args: Any, **kwargs: Any) -> Any:
    with _Fence(label, name):
        result = function(*args, **kwargs)
    return _watched(result, label, name) if inspect.isgenerator(result) else result


def _watched(generator: Any, label: str, name: str) -> Iterator[Any]:
    with _Fence(label, name):
        yield from generator


class _Fence:
    """Context manager that translates; a class because it also stands inside generators."""

    def __init__(self, label: str, name: str) -> None:
        self._label = label
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, WsyncError):
            return
        raise PluginError(
            f"{self._label}: `{self._name}` raised {type(error).__name__}", next_step="report it to the connector's author, with the log"
        ) from error
