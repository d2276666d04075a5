"""Finding the class that a config names: a registry key, or `package.module:ClassName` for a plug-in."""

import importlib
from collections.abc import Callable, Mapping
from difflib import get_close_matches

from utils.errors import UserError


def resolve(kind: str, name: str, registry: Mapping[str, Callable]) -> Callable:
    """The class or factory that `name` stands for.

    Args:
        kind: the config key that held the name, for messages ("learner", "mac", "runner", ...).
        name: a key of `registry`, or `package.module:ClassName`.
        registry: the built-in choices.

    Raises:
        UserError: the name is neither; the message lists what exists.
    """
    if name in registry:
        return registry[name]
    if ":" not in name:
        near = get_close_matches(name, registry, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(
            f"{kind}={name!r}: unknown{hint}; available: {', '.join(sorted(registry))}, "
            f"or a class of your own as package.module:ClassName"
        )
    return load_plugin(kind, name)


def load_plugin(kind: str, name: str) -> Callable:
    """Import `package.module:ClassName`.

    Raises:
        UserError: the module or the class does not exist. Errors inside the module are raised as they are.
    """
    module_name, _, class_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), class_name)):
        raise UserError(f"{kind}={name!r}: a class of your own is named as package.module:ClassName")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing and not (module_name + ".").startswith(missing + "."):
            raise  # the plug-in exists, but something it imports does not
        raise UserError(
            f"{kind}={name!r}: no module named {module_name!r}; it must lie in the current folder or on PYTHONPATH"
        ) from error
    if not hasattr(module, class_name):
        raise UserError(f"{kind}={name!r}: module {module_name} has no class {class_name!r}")
    return getattr(module, class_name)


def lazy(path: str) -> Callable:
    """A factory that imports `module:ClassName` of this project only when it is called."""

    def build(*args, **kwargs):
        module_name, _, class_name = path.partition(":")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"{module_name} needs the package {error.name}, which is not installed; "
                f"run: pip install -r requirements.txt"
            ) from error
        return getattr(module, class_name)(*args, **kwargs)

    build.__qualname__ = build.__name__ = path
    return build
