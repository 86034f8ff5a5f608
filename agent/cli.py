"""The command `reluscope`: finds its subcommands by entry point and loads only the one that is called."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import click

GROUP = "reluscope.commands"
_OWN = frozenset({"agent", "detector"})


class Commands(click.Group):
    """A group whose members are the entry points of `reluscope.commands`.

    An agent's image has no SQLAlchemy and a detector's image no onnxruntime, so a command is imported when it is
    named, and one whose packages are missing says which extra brings them.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_installed())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = _installed().get(cmd_name)
        return None if entry is None else _load(entry)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name, entry in sorted(_installed().items()):
            try:
                rows.append((name, _load(entry).get_short_help_str(limit=90)))
            except click.ClickException:
                rows.append((name, f"(needs {_requirement(entry)})"))
            except ImportError as error:
                rows.append((name, f"(cannot be loaded: {error})"))  # the other commands still have their help
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> click.Command:
    try:
        command = entry.load()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in _OWN:
            raise  # a module of our own is missing: a broken installation, no missing extra
        raise click.ClickException(
            f"`reluscope {entry.name}` needs the package {missing!r}: pip install '{_requirement(entry)}'"
        ) from error
    if not isinstance(command, click.Command):
        raise click.ClickException(f"the entry point {entry.name} = {entry.value} is no click command")
    return command


def _requirement(entry: EntryPoint) -> str:
    return f"reluscope[{entry.module.partition('.')[0]}]"


@click.group(cls=Commands, context_settings={"auto_envvar_prefix": "RELUSCOPE", "help_option_names": ["-h", "--help"]})
@click.version_option(package_name="reluscope", prog_name="reluscope")
def main() -> None:
    """Watch the activations of served ONNX models: drift, dead neurons, and a page with its runbook.

    Every option may be given by an environment variable: RELUSCOPE_<COMMAND>_<OPTION>.
    """


if __name__ == "__main__":
    main()
