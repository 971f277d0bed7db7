"""`Kernel`: one compiled function, told by its template and its compile-time choices."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from educe.compiler import kernels
from educe.compiler.emit import Function
from educe.compiler.target import Target

Template = Callable[..., None]

_TEMPLATES: dict[str, Template] = {}


def template(name: str) -> Callable[[Template], Template]:
    """Register a function that writes a kernel: ``write(fn, target, **choices)``."""

    def register(write: Template) -> Template:
        assert name not in _TEMPLATES, name
        _TEMPLATES[name] = write
        return write

    return register


def _template(name: str) -> Template:
    if name not in _TEMPLATES:
        for module in pkgutil.iter_modules(kernels.__path__):
            importlib.import_module(f"{kernels.__name__}.{module.name}")
    return _TEMPLATES[name]


@dataclass(frozen=True)
class Kernel:
    """A template with its choices: what is fixed when the code is made; sizes are not.

    Attributes:
        template: The template's name.
        choices: Its keyword arguments, by name; every value is hashable and has a faithful `repr`.
    """

    template: str
    choices: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, template: str, **choices: Any) -> Kernel:
        """Return the kernel of `template` with `choices`."""
        return cls(template, tuple(sorted(choices.items())))

    @cached_property
    def name(self) -> str:
        """The symbol: the template's name and a hash of the choices."""
        digest = hashlib.sha256(repr(self.choices).encode()).hexdigest()[:12]
        return f"{self.template}_{digest}"

    def text(self, target: Target) -> str:
        """Return the kernel as LLVM IR."""
        fn = Function(self.name, has_half=target.has_half)
        _template(self.template)(fn, target, **dict(self.choices))
        return fn.text()

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value}" for name, value in self.choices)
        return f"{self.template}({shown})"
