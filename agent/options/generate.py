"""Command-line options and environment variables from settings that are described once.

A *section* is a pydantic dataclass with ``config=SECTION``. Each of its fields is an option: the field's name, type,
bounds (``Field(ge=...)``) and default are the option's, and the string below it is its help. A field whose type is a
section brings that section's options along. What name and type do not tell, `Option` tells:

    @dataclass(frozen=True, config=SECTION)
    class Cache:
        size: Annotated[int, Option("cache_mib", unit=MIB)] = Field(default=64 * MIB, ge=1)
        '''Memory for answers.'''

    @click.command(context_settings={"auto_envvar_prefix": "RELUSCOPE_CACHE"})
    @options(Cache)
    def command(settings: Cache) -> None: ...

gives ``--cache-mib INTEGER RANGE  Memory for answers.  [default: 64; x>=1]``, the environment variable
``RELUSCOPE_CACHE_CACHE_MIB``, and ``settings.size`` in bytes. The command line goes before the environment, and that
before the default: click takes the line apart, pydantic-settings gathers what the sources say, pydantic checks it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

import click
from annotated_types import Ge, Gt, Le, Lt
from click.core import ParameterSource
from pydantic import ConfigDict, Field, ValidationError, create_model
from pydantic.dataclasses import is_pydantic_dataclass
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

KIB, MIB = 1 << 10, 1 << 20
SECTION = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)
"""Of every section."""
_LIMITS = (Ge, Gt, Le, Lt)


@dataclass(frozen=True, slots=True)
class Option:
    """What a field's name and type do not tell of its option."""

    name: str = ""
    """With underscores, where it differs from the field's."""
    unit: int = 1
    """How many of the field's units make one of the option's: bytes in a MiB."""
    default: str = ""
    """The default in words."""
    metavar: str | None = None
    multiple: bool = False
    """May be repeated; the field gets a tuple of strings, or from the environment one string."""
    envvar: str | None = None
    """An environment variable that all commands share for it."""
    internal: bool = False


INTERNAL = Option(internal=True)
"""Of a field that is no option, since the program sets it."""


@dataclass(frozen=True, slots=True)
class _Described:
    """One option, and where its field is in the tree of sections."""

    path: tuple[str, ...]
    field: FieldInfo
    option: Option

    @property
    def kind(self) -> Any:
        """The field's type without None."""
        kinds = [kind for kind in get_args(self.field.annotation) if kind is not type(None)]
        optional = type(None) in get_args(self.field.annotation)
        return kinds[0] if optional and len(kinds) == 1 else self.field.annotation

    @property
    def default(self) -> Any:
        """In the option's unit; None where there is none, or one that is only known on the machine."""
        value = None if self.field.is_required() or self.field.default_factory else self.field.default
        return value if value is None or self.option.unit == 1 else value // self.option.unit

    def bound(self, kind: type) -> Any:
        """In the option's unit, rounded up: a byte at least is a MiB at least."""
        for limit in self.field.metadata:
            if isinstance(limit, kind):
                value = getattr(limit, kind.__name__.lower())
                return value if self.option.unit == 1 else -(-value // self.option.unit)
        return None


def options(section: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator, below `click.command`, that adds a section's options; the command gets it as ``settings``.

    The environment variables begin with the context's ``auto_envvar_prefix``. Values that are refused end the command
    with exit code 2 and are all named.
    """
    described = {one.option.name: one for one in _describe(section, ())}
    model = _model(described)

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        def told(*args: Any, **values: Any) -> Any:
            context = click.get_current_context()
            own = {name: values.pop(name) for name in described}
            given = {name: own[name] for name in own if _from_line(context, name)}
            try:
                found = cast(Any, model)(_env_prefix=f"{context.auto_envvar_prefix}_", **given)
                settings = _build(section, {one.path: _value(found, one) for one in described.values()}, ())
            except ValidationError as error:
                raise click.UsageError(_complaint(context, described, error), context) from None
            return command(*args, settings=settings, **values)

        made: Callable[..., Any] = functools.update_wrapper(told, command)
        for one in reversed(described.values()):
            made = _click_option(one)(made)
        return made

    return decorate


def _describe(section: type[Any], path: tuple[str, ...]) -> Iterator[_Described]:
    fields: Mapping[str, FieldInfo] = cast(Any, section).__pydantic_fields__
    for name, field in fields.items():
        told = [one for one in field.metadata if isinstance(one, Option)]
        option = told[-1] if told else Option()  # the field's own comes after those of a type it shares
        if option.internal:
            continue
        if is_pydantic_dataclass(cast(Any, field.annotation)):
            yield from _describe(cast(Any, field.annotation), (*path, name))
        else:
            yield _Described((*path, name), field, replace(option, name=option.name or name))


class _Told(BaseSettings):
    """What the sources say, flat and in the options' units. A further source has its place here."""

    model_config = SettingsConfigDict(
        allow_inf_nan=False,
        enable_decoding=False,  # lists come as one string, and the field's validator parts it
        env_ignore_empty=True,
        loc_by_alias=False,
        populate_by_name=True,
        protected_namespaces=(),
    )


def _model(described: Mapping[str, _Described]) -> type[_Told]:
    fields: dict[str, Any] = {}
    for name, one in described.items():
        metadata: list[Any] = [kind(limit) for kind in _LIMITS if (limit := one.bound(kind)) is not None]
        metadata += [item for item in one.field.metadata if not isinstance(item, _LIMITS)]
        default = {} if one.field.is_required() else {"default": one.default}
        if one.field.default_factory is not None:
            default = {"default_factory": one.field.default_factory}
        annotation = Annotated[(one.field.annotation, *metadata)] if metadata else one.field.annotation
        fields[name] = (annotation, Field(validation_alias=one.option.envvar, **cast(Any, default)))
    return create_model("Settings", __base__=_Told, **fields)


def _from_line(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _value(found: _Told, one: _Described) -> Any:
    value = getattr(found, one.option.name)
    return value if one.option.unit == 1 or value is None else value * one.option.unit


def _build(section: type[Any], values: Mapping[tuple[str, ...], Any], path: tuple[str, ...]) -> Any:
    """The section at a path of the tree, and those in it."""
    here = {place[len(path)] for place in values if place[: len(path)] == path}
    fields = cast(Any, section).__pydantic_fields__
    return section(
        **{
            name: values[(*path, name)]
            if (*path, name) in values
            else _build(fields[name].annotation, values, (*path, name))
            for name in here
        }
    )


def _complaint(context: click.Context, described: Mapping[str, _Described], error: ValidationError) -> str:
    """Each wrong option on a line, in click's own words where click would have refused it too."""
    parameters = {parameter.name: parameter for parameter in context.command.get_params(context)}
    lines = []
    for one in error.errors(include_url=False):
        reason = str(one.get("ctx", {}).get("error", "")) or one["msg"].replace("Input", repr(one["input"]), 1)
        name = str(one["loc"][0]) if one["loc"] else ""
        if name not in described:
            lines.append(reason)
        elif one["type"] == "missing":
            lines.append(click.MissingParameter(ctx=context, param=parameters[name]).format_message())
        else:
            hint = parameters[name].get_error_hint(context)
            if not _from_line(context, name):
                hint += f" ({described[name].option.envvar or f'{context.auto_envvar_prefix}_{name.upper()}'})"
            try:
                parameters[name].type.convert(one["input"], parameters[name], context)
            except click.BadParameter as refused:
                reason = refused.message
            lines.append(click.BadParameter(reason, context, param_hint=hint).format_message())
    return "\n".join(lines)


class _Unchecked(click.Option):
    """Shows what its field takes and hands on what was typed, to be checked like the environment's."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        return value

    def value_is_missing(self, value: Any) -> bool:
        return False


def _click_option(one: _Described) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    dashed = one.option.name.replace("_", "-")
    flag = one.kind is bool
    return click.option(
        f"--{dashed}/--no-{dashed}" if flag else f"--{dashed}",
        one.option.name,
        cls=_Unchecked,
        allow_from_autoenv=False,
        type=None if flag else _click_type(one),
        multiple=one.option.multiple,
        metavar=one.option.metavar,
        required=one.field.is_required(),
        default=one.default,
        show_default=one.option.default or True,
        help=one.field.description,
    )


def _click_type(one: _Described) -> click.ParamType[Any]:
    least, above, most, below = map(one.bound, _LIMITS)
    bounds: dict[str, Any] = {
        "min": least if least is not None else above,
        "max": most if most is not None else below,
        "min_open": above is not None,
        "max_open": below is not None,
    }
    if get_origin(one.kind) is Literal:
        return click.Choice([str(choice) for choice in get_args(one.kind)])
    if one.kind is Path:
        return click.Path(path_type=Path)
    if one.kind not in (int, float):
        return click.STRING
    bounded = bounds["min"] is not None or bounds["max"] is not None
    if one.kind is int:
        return click.IntRange(**bounds) if bounded else click.INT
    return click.FloatRange(**bounds) if bounded else click.FLOAT
