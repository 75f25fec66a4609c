"""Flags made from a dataclass of settings: one per field, named by its path, ``--ppo.learning_rate``."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from absl import flags

from qos_jax.errors import InputError, input_error
from qos_jax.options import Option, check_options, option_of

_Config = TypeVar("_Config")
_NAMES: dict[Any, str] = {int: "a whole number", float: "a number", str: "a string"}


@dataclasses.dataclass(frozen=True)
class ConfigFlags(Generic[_Config]):
    """The flags of a configuration; none has a value unless it is given, so defaults may come later."""

    kind: type[_Config]
    start: _Config | None  # what the flags change; None = the defaults of the class
    holders: Mapping[str, flags.FlagHolder]  # by the dotted path of their field

    def given(self) -> dict[str, Any]:
        """Return the values of those flags that were given, by the dotted path of their field."""
        values = {path: holder.value for path, holder in self.holders.items() if holder.present}
        return {path: tuple(value) if isinstance(value, list) else value for path, value in values.items()}

    def read(self, start: _Config | None = None) -> _Config:
        """Return the configuration with what was given, ``start`` in place of what the flags change.

        Raises:
          InputError: a required flag is missing, or the dataclass refuses a value.
        """
        return configured(self.kind, self.start if start is None else start, self.given())


def define_config_flags(
    kind: type[_Config],
    start: _Config | None = None,
    *,
    leave_out: tuple[str, ...] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
) -> ConfigFlags[_Config]:
    """Define a flag per field of a configuration, and of those in it, as flags of the program.

    The help is the comment behind the field, or that of its :func:`~qos_jax.options.option`, and the default.
    A group that may be None, ``group: Group | None``, has a flag ``--group`` that turns it on.

    Args:
      kind: a dataclass; fields without a default are required.
      start: one of it, whose values are the defaults; None = those of ``kind``.
      leave_out: fields that get no flag.
      flag_values: where to define them.
    """
    holders: dict[str, flags.FlagHolder] = {}
    for leaf in _leaves(kind, start):
        if leaf.path in leave_out:
            continue
        about: dict[str, Any] = {"name": leaf.name, "default": None, "help": leaf.help}
        about |= {"flag_values": flag_values, "module_name": sys.argv[0]}
        if leaf.kind in (bool, bool | None):
            holders[leaf.path] = flags.DEFINE_bool(**about)
            continue
        define: Any = flags.DEFINE_multi if leaf.option.repeatable else flags.DEFINE
        holders[leaf.path] = define(_Parser(leaf.kind, leaf.option), serializer=None, **about)
    return ConfigFlags(kind, start, holders)


def configured(
    kind: type[_Config], start: _Config | None, changes: Mapping[str, Any], prefix: str = ""
) -> _Config:
    """Return a configuration with the changes made, by dotted path; those of a group all at once.

    Raises:
      InputError: a required field is missing, or what the dataclass refuses, with the name of the group.
    """
    groups: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        groups.setdefault(head, {})[rest] = value
    values = {}
    for field, hint, value in _fields(kind, start):
        given, missing = groups.get(field.name, {}), value is dataclasses.MISSING
        inner = prefix if option_of(field).flat else f"{prefix}{field.name}."
        if "" in given:
            value = given.pop("")
        if group := _optional_group(hint):
            if value is True:
                value = configured(group, None, given, inner)
            elif given:
                remedy = f"give --{field.name}, or leave it out"
                raise input_error(f"needs --{field.name}", field=next(iter(given)), remedy=remedy)
            value = value or None
        elif dataclasses.is_dataclass(hint) and (given or missing):
            value = configured(typing.cast(type, hint), None if missing else value, given, inner)
        if value is dataclasses.MISSING:
            name = f"{prefix}{field.name}"
            raise input_error("is missing", field=name, remedy=f"give --{name}, see --help")
        values[field.name] = value
    group_name = prefix.removesuffix(".")
    try:
        config = kind(**values)
        check_options(config)
        return config
    except InputError as error:
        raise (InputError(f"{group_name}, {error}") if group_name else error) from None
    except ValueError as error:
        raise input_error(str(error), file=group_name or None, remedy="see --help") from None


class _Parser(flags.ArgumentParser):
    """Reads one value of a field's type; ``none`` where the type allows it, tuples with commas."""

    def __init__(self, kind: Any, option: Option) -> None:
        kinds = typing.get_args(kind) if _is_union(kind) else (kind,)
        (kind,) = (one for one in kinds if one is not type(None))
        self._optional = type(None) in kinds
        self._is_list, self._length = False, None
        if typing.get_origin(kind) is tuple:
            items = typing.get_args(kind)
            kind, self._is_list = items[0], not option.repeatable
            self._length = None if items[-1] is Ellipsis else len(items)
        self._item = kind
        text = _NAMES[kind]
        if self._is_list:
            items_text = f"{'names' if kind is str else 'numbers'}, separated by commas"
            text = f"{self._length} {items_text}" if self._length else items_text
        if option.known:  # which the configuration checks, with the nearest name as remedy
            text = f"{'some' if self._is_list else 'one'} of {', '.join(option.known)}"
        self.syntactic_help = f"{text}, or none" if self._optional else text

    def parse(self, argument: str) -> Any:
        text = argument.strip()
        if self._optional and text.lower() == "none":
            return None
        if not self._is_list:
            return self._read(text, self.syntactic_help)
        parts = text.split(",") if text else []
        if self._length not in (None, len(parts)):
            raise ValueError(f"{text!r} is not {self.syntactic_help}")
        return tuple(self._read(part.strip(), _NAMES[self._item]) for part in parts)

    def _read(self, text: str, wanted: str) -> Any:
        try:
            return self._item(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {wanted}") from None


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A field that has a flag."""

    path: str  # where it is in the configuration
    name: str  # its flag's: the path without the groups that are flat
    kind: Any  # its type
    help: str
    option: Option


def _leaves(kind: type, start: Any, path: str = "", name: str = "", only_with: str = "") -> Iterator[_Leaf]:
    """Yield every field that is no group, and the switch of each group that may be None."""
    comments = field_comments(kind)
    for field, hint, value in _fields(kind, start):
        option, own_path, own_name = option_of(field), f"{path}{field.name}", f"{name}{field.name}"
        text = f"{only_with}{option.help or comments.get(field.name, '')}"
        inner = name if option.flat else f"{own_name}."
        if group := _optional_group(hint):
            yield _Leaf(own_path, own_name, bool, text, option)
            yield from _leaves(group, None, f"{own_path}.", inner, f"with --{own_name}: ")
        elif dataclasses.is_dataclass(hint):
            nested = None if value is dataclasses.MISSING else value
            yield from _leaves(typing.cast(type, hint), nested, f"{own_path}.", inner, only_with)
        else:
            yield _Leaf(own_path, own_name, hint, f"{text} {_default(value)}", option)


def _fields(kind: type, start: Any) -> Iterator[tuple[dataclasses.Field[Any], Any, Any]]:
    """Yield field, type and value of a dataclass: that of ``start``, else the default, or ``MISSING``."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        value = field.default
        if start is not None:
            value = getattr(start, field.name)
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        yield field, hints[field.name], value


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _optional_group(kind: Any) -> type | None:
    """Return the dataclass of a type ``Group | None``, or None."""
    groups = [one for one in typing.get_args(kind) if dataclasses.is_dataclass(one)]
    return typing.cast(type, groups[0]) if _is_union(kind) and groups else None


def field_comments(kind: type) -> dict[str, str]:
    """Return the comment behind each field of a dataclass, on its last line, where there is one."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    by_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    fields = [node for node in definition.body if isinstance(node, ast.AnnAssign)]
    return {
        node.target.id: by_line[node.end_lineno].lstrip("# ")
        for node in fields
        if isinstance(node.target, ast.Name) and node.end_lineno in by_line
    }


def _default(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "(required)"
    if isinstance(value, tuple):
        return f"(default: {','.join(map(str, value)) or 'empty'})"
    return f"(default: {'none' if value is None else value})"
