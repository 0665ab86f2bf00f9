"""`Component`, the base of every class whose fields are hyper-parameters."""

import contextlib
import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import pkgutil
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf

from datasets.errors import InputError, its_type, with_article

Natural = Annotated[int, Ge(0)]
Count = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(ge=0, le=1)]
Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
_PACKAGES = ("datasets", "orchestrator", "trainers")
_LIMITS: dict[type, tuple[str, Callable[[Any, Any], bool]]] = {
    Ge: ("at least", operator.ge),
    Gt: ("above", operator.gt),
    Le: ("at most", operator.le),
    Lt: ("below", operator.lt),
    MultipleOf: ("a multiple of", lambda value, of: value % of == 0),
}
"""Limit in an annotation → its words in messages, and the test of (value, limit's number). A number with a limit must be finite."""

NEUTRAL = {"neutral": True}
"""`field(default=…, metadata=NEUTRAL)` marks a field that changes how something runs but never its result; it is left out of the
identity."""


def since(value: Any) -> Any:
    """Default of a field that was added to its class after artefacts were made.

    `value` must stand for what was done before the field existed: a field with this value is left out of the identity, so older artefacts
    stay valid.
    """
    return dataclasses.field(default=value, metadata={"since": value})


class NamedFields:
    """Base of dataclasses whose fields are given by name. An unknown name raises InputError with the list of known ones."""

    def __new__(cls, *values: Any, **fields: Any) -> Any:
        if "__dataclass_fields__" not in cls.__dict__:  # then the fields it adds would be no part of its identity
            added = [name for name, hint in inspect.get_annotations(cls).items() if "ClassVar" not in str(hint)]
            if added:
                raise InputError(
                    f"{cls.__name__} has the field {added[0]!r} but is no dataclass: write @dataclass(frozen=True, kw_only=True) above it."
                )
        accepted = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
        if values:
            raise InputError(f"{cls.__name__}({shown(values[0])}, …): fields are given by name; accepted: {', '.join(accepted) or 'none'}.")
        for name in fields:
            if name not in accepted:
                near = difflib.get_close_matches(name, accepted, n=1)
                guess = f" Did you mean {near[0]!r}?" if near else ""
                raise InputError(f"{cls.__name__} has no field {name!r}; accepted: {', '.join(accepted) or 'none'}.{guess}")
        return super().__new__(cls)


@dataclass(frozen=True, kw_only=True)
class Component(NamedFields):
    """A frozen dataclass that is its own configuration.

    Its identity consists of its class's `id` and its fields; `orchestrator.experiment.fingerprint` encodes them as canonical JSON. Fields
    are numbers, text, booleans, None, other components, or tuples of those. They are checked against their annotations before a subclass's
    own `__post_init__` runs: InputError for a wrong type, a number outside its limits (`Count`, `Share`, `Annotated[int, Ge(2)]`), or a
    text that is none of the choices (`Literal["cosine", "constant"]`).
    """

    id: ClassVar[str] = "Component"
    """The class's name in identities: its Python name, unless its body sets another (`id = "…"`). The module is no part of it, so a class
    may be moved. A renamed class keeps its artefacts if it sets `id` to its old name."""

    def __post_init__(self) -> None:
        check_fields(self)

    def __init_subclass__(cls) -> None:
        if "id" not in cls.__dict__:
            cls.id = cls.__name__
        post_init = cls.__dict__.get("__post_init__")
        if post_init is not None:  # so that no subclass can omit the call of the base's method

            def checked(self: Any) -> None:
                check_fields(self)
                post_init(self)

            cls.__post_init__ = checked  # type: ignore[method-assign]
        owner = next(base for base in cls.__mro__ if "label" in base.__dict__)
        inherited = owner not in (cls, Component) and issubclass(owner, Component)
        if inherited and "label" not in getattr(owner, "__dataclass_fields__", {}):
            cls.label = Component.label  # type: ignore[method-assign, assignment]

    @property
    def label(self) -> str:
        """The name that people see in tables, legends, plans and tags: one line of text, by default the class's name.

        A class may define its own label, which may depend on its fields. Labels are not inherited: a subclass without one is called by its
        own class's name, never by its parent's label.
        """
        return type(self).__name__

    def needs(self) -> "tuple[Component, ...]":
        """Components that must be made before this one runs, each by a stage of its own: a further test set, the labels of the cleaning
        pictures, or anything else that some kind of stage `serves`. Their folders are in `Material.made` or `Run.made`."""
        return ()

    @property
    def slug(self) -> str:
        """The first part of its artefacts' folder names and of messages about it: the class's name in lower case."""
        return type(self).__name__.lower()


def components(value: Any) -> Iterator[Component]:
    """All components in a value, each one before those in its fields."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from components(item)
    elif isinstance(value, Component):
        yield value
        for field in dataclasses.fields(value):
            yield from components(getattr(value, field.name))


def needs_of(value: Any) -> tuple[Component, ...]:
    """Everything that the components in a value need, each once."""
    return tuple(dict.fromkeys(need for component in components(value) for need in component.needs()))


def check_fields(component: Any) -> None:
    """Coerce every field to its annotation (1 to 1.0, a list to a tuple). Raises InputError naming a field that does not fit."""
    for name, hint in hints(type(component)).items():
        value = getattr(component, name)
        fitting = coerce(value, hint, f"{type(component).__name__}.{name}")
        if fitting is not value:
            object.__setattr__(component, name, fitting)
        if isinstance(component, Component) and not _hashable(fitting):
            raise InputError(
                f"{type(component).__name__}.{name}: {shown(fitting)} can be changed in place; accepted: numbers, text, booleans, None, "
                "components, and tuples of those."
            )


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def shown(value: Any) -> str:
    """The value for a message: its Python text, shortened if it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or deeply nested brackets
        return f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"


_HINTS: dict[type, dict[str, Any]] = {}


def hints(cls: type) -> dict[str, Any]:
    """Field name → resolved annotation."""
    if cls not in _HINTS:
        resolved = typing.get_type_hints(cls, include_extras=True)
        _HINTS[cls] = {f.name: resolved[f.name] for f in dataclasses.fields(cls)}
    return _HINTS[cls]


def coerce(value: Any, hint: Any, path: str) -> Any:
    """The value as the annotated type; whole floats may stand for integers, and lists for tuples. Raises InputError if it does not fit."""
    for option in options(hint):
        kind, limits = unlimited(option)
        fitting = _as(value, kind, path)
        if fitting is not _OTHER:
            if limits and not (math.isfinite(fitting) and all(_LIMITS[type(one)][1](fitting, _number(one)) for one in limits)):
                raise InputError(f"{path} is {shown(value)}; accepted: {_describe(hint)}.")
            return fitting
    if isinstance(value, str) and any(map(choices, options(hint))):
        raise InputError(f"{path} is {shown(value)}; accepted: {_describe(hint)}.")
    raise InputError(f"{path}: {shown(value)} is {its_type(value)}; accepted: {_describe(hint)}.")


_OTHER = object()


def _as(value: Any, kind: Any, path: str) -> Any:
    """The value as a type without limits; `_OTHER` if it is of another type."""
    origin = typing.get_origin(kind) or kind
    if kind is Any or (kind is type(None) and value is None) or (kind is bool and isinstance(value, bool)):
        return value
    if kind is int and not isinstance(value, bool) and (isinstance(value, int) or _whole(value)):
        if abs(value) < 2**63:
            return int(value)
        raise InputError(f"{path}: {shown(value)} is too large; accepted: whole numbers below 2**63.")
    if kind is float and not isinstance(value, bool) and isinstance(value, (int, float)):
        try:
            return float(value)
        except OverflowError:
            raise InputError(f"{path}: {shown(value)} is too large; accepted: numbers below 1.8e308.") from None
    if kind is str and isinstance(value, str):
        if "\0" in value:
            raise InputError(f"{path}: {shown(value)} holds a NUL character; accepted: text without one.")
        return value
    if isinstance(value, str) and value in choices(kind):
        return value
    if origin is dict and isinstance(value, dict):
        return value
    if origin is tuple and isinstance(value, (tuple, list)):
        return _tuple(tuple(value), typing.get_args(kind), path)
    if dataclasses.is_dataclass(kind) and isinstance(value, typing.cast(type, kind)):
        return value
    return _OTHER


def _whole(value: Any) -> bool:
    return isinstance(value, float) and value.is_integer()


def _tuple(value: tuple, arguments: tuple, path: str) -> tuple:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(coerce(item, arguments[0], f"{path}[{i}]") for i, item in enumerate(value))
    if len(arguments) != len(value):
        raise InputError(f"{path}: {shown(value)} has {len(value)} values; accepted: {len(arguments)}.")
    return tuple(coerce(item, hint, f"{path}[{i}]") for i, (item, hint) in enumerate(zip(value, arguments)))


def options(hint: Any) -> tuple:
    """The parts of a union; for any other annotation, the annotation itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def choices(hint: Any) -> tuple[str, ...]:
    """The texts of a `Literal`; empty for any other annotation."""
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def unlimited(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without its limits, and the limits: `Share` gives (float, (Ge(0), Le(1)))."""
    if typing.get_origin(hint) is not Annotated:
        return hint, ()
    kind, *limits = typing.get_args(hint)
    return kind, tuple(one for limit in limits for one in (limit if isinstance(limit, Interval) else (limit,)))


def _number(limit: Any) -> float:
    return getattr(limit, limit.__match_args__[0])


def _describe(hint: Any) -> str:
    names = {type(None): "none", bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    parts = []
    for option in options(hint):
        kind, limits = unlimited(option)
        origin = typing.get_origin(kind)
        if origin is tuple:
            parts.append("a tuple of " + " and ".join(_describe(a) for a in typing.get_args(kind) if a is not Ellipsis))
        elif kind in names:
            within = " and ".join(f"{_LIMITS[type(limit)][0]} {_number(limit)}" for limit in limits)
            parts.append(names[kind] + (f" ({within})" if within else ""))
        elif origin is dict:
            parts.append("a dictionary")
        else:
            parts.append(", ".join(choices(kind)) or _component(kind))
    return " or ".join(parts)


def _component(kind: Any) -> str:
    """`a Views component`; of a class with others below it, which of them are accepted: `an Order component (Drawn, Formula, Windows)`."""
    if kind is Component:
        return "a component"
    name = getattr(kind, "__name__", str(kind))
    accepted = classes_of(kind) if dataclasses.is_dataclass(kind) else [name]
    return f"{with_article(name)} component" + (f" ({', '.join(accepted)})" if accepted != [name] else "")


def classes_of(base: Any) -> list[str]:
    """The names of the classes that a field of this type accepts, itself first unless it is abstract, the others in alphabetical order.

    If the type is one of this project's, the modules beside its own are imported for that, so that classes which nothing has used yet are
    named too.
    """
    package = base.__module__.rpartition(".")[0]
    if package.partition(".")[0] in _PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            with contextlib.suppress(ImportError):  # of a library that is not installed
                importlib.import_module(f"{package}.{module.name}")
    below = sorted({name for name in _concrete(base) if not name.startswith("_")} - {base.__name__}, key=str.lower)
    return below if inspect.isabstract(base) else [base.__name__, *below]


def _concrete(base: Any) -> Iterator[str]:
    for cls in base.__subclasses__():
        yield from () if inspect.isabstract(cls) else (cls.__name__,)
        yield from _concrete(cls)
