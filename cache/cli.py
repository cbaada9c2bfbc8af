"""What every command shares: expected errors, flags derived from a dataclass, and exit statuses."""

import argparse
import dataclasses
import errno
import functools
import importlib
import io
import math
import os
import shlex
import signal
import sys
import typing
from collections.abc import Callable
from typing import Any

EXIT_OK, EXIT_INCOMPLETE, EXIT_ERROR = 0, 1, 2
AT_LEAST_0, AT_LEAST_1 = (0, math.inf), (1, math.inf)


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the system's words for no room
_REMEDIES = {
    **dict.fromkeys(FULL, "; free some space, and type the same command again"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "; look at its permissions, or name another place"),
    **dict.fromkeys((errno.EROFS, errno.ENOTDIR, errno.EEXIST), "; name another place"),
    errno.EMFILE: "; raise the limit with ulimit -n",
}


class InputError(ValueError):
    """An expected error: its message carries the file, what was found, what was expected and the remedy."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of a command, each within its limits.

    Raises
    ------
    InputError : a value is out of range
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, limits = getattr(self, field.name), field.metadata.get("limits")
            if limits and value is not None and not limits[0] <= value <= limits[1]:
                expected = "{:g} or more" if limits[1] == math.inf else "{:g} to {:g}"
                raise InputError(f"--{field.name.replace('_', '-')} {value:g}; expected {expected.format(*limits)}")


def flag(default: Any, help: str, limits: tuple[float, float] | None = None, **kwargs: Any) -> Any:
    """A dataclass field that :func:`parse_flags` turns into a command-line flag.

    Parameters
    ----------
    default : the flag's default; its type is the field's, float where that is ``float | None``
    help : one line for ``--help``
    limits : lowest and highest value that :class:`Flags` takes; `AT_LEAST_0` and `AT_LEAST_1` have no highest
    kwargs : passed to ``ArgumentParser.add_argument`` (``choices``, ``metavar``, ``action``, …)
    """
    return dataclasses.field(default=default, metadata={"help": help, "limits": limits, **kwargs})


class Once(argparse.Action):
    """Takes a flag that a user may expect to collect: a second one is an error, and does not replace the first."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Keep the value."""
        if hasattr(namespace, self.dest):
            parser.error(f"{option_string} is given twice; it takes one")
        setattr(namespace, self.dest, values)


def parse_flags(options: type, argv: list[str] | None, *, prog: str, description: str | None) -> dict[str, Any]:
    """Parse a command line into the flags that were given explicitly.

    Only explicit flags are returned, so that a caller can lay them over a recipe and the dataclass's defaults:
    ``Options(**{**recipe, **parse_flags(Options, argv, …)})``.

    Parameters
    ----------
    options : a dataclass whose fields were made with :func:`flag`; ``n_mels`` becomes ``--n-mels``
    argv : the arguments, or None for ``sys.argv[1:]``
    prog : shown in the usage line, such as ``python -m train.run``
    description : its first line is shown above the flags; None under ``python -OO``, which drops docstrings

    Returns
    -------
    dict : field name → value, for the flags that were given
    """
    parser = argparse.ArgumentParser(prog=prog, description=(description or "").partition("\n")[0], allow_abbrev=False)
    for field in dataclasses.fields(options):
        settings = {key: value for key, value in field.metadata.items() if key != "limits"}
        positional = settings.pop("positional", False)
        shown = "" if field.default in (None, False, "", ()) else f" (default: {field.default})"
        settings["help"] = settings["help"].replace("%", "%%") + shown.replace("%", "%%")
        if positional:
            parser.add_argument(field.name, **settings)
            continue
        if isinstance(field.default, bool):
            settings.setdefault("action", argparse.BooleanOptionalAction if field.default else "store_true")
        elif "action" not in settings or settings["action"] == "append":
            settings.setdefault("type", (*typing.get_args(field.type), field.type)[0])  # float of float | None
        parser.add_argument("--" + field.name.replace("_", "-"), default=argparse.SUPPRESS, **settings)
    given = vars(parser.parse_args(argv))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def command_line(module: str, values: dict[str, Any], usual: Any) -> str:
    """What to type for some flags: those that are set and differ from the attributes of `usual`."""
    line = f"python -m {module}"
    for name, given in values.items():
        for value in given if isinstance(given, tuple) else (given,):
            if type(value) in (bool, int, float, str) and given != getattr(usual, name, given):
                between = "=" if str(value).startswith("-") else " "
                line += f" --{name.replace('_', '-')}" + ("" if value is True else between + shlex.quote(str(value)))
    return line


def printable(text: str) -> str:
    """Text without the characters that steer a terminal, break a line or are no text: escaped as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def counted(number: int, noun: str) -> str:
    """A number and what it counts: ``1 clip``, ``2,000 clips``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def say(text: str, *, error: bool = False) -> None:
    """Print a line for the user at once, escaped as by :func:`printable`; with `error` on stderr."""
    print(printable(text), file=sys.stderr if error else sys.stdout, flush=True)


def describe_error(error: InputError | OSError) -> str:
    """An expected error as one line; what the system reports becomes file, reason and, where there is one, remedy."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        name = error.filename or ("standard output" if error.errno in FULL else None)  # other files have their name
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror  # HDF5 puts a paragraph there
        message = f"{os.fsdecode(name)}: {reason}" if name else message
    return printable(message + _REMEDIES.get(getattr(error, "errno", None) or 0, ""))


def first_line(error: Exception) -> str:
    """The first line of an error's words, cut to 200 characters; its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def is_reader_gone(error: Exception) -> bool:
    """Whether nobody reads what is printed any more; a pipe that has a file name is another one."""
    return isinstance(error, BrokenPipeError) and not error.filename


def run_main(body: Callable[[], int]) -> int:
    """Run a command; an expected error becomes one line on stderr and exit status 2.

    Expected are :class:`InputError` and ``OSError`` (missing file, full disk, no permission). Anything else is a
    bug and keeps its traceback. Ctrl-C ends with status 130, and a reader that closes the pipe with 141, as in a shell.
    What the console has no characters for is escaped.
    """
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - Python has none where it was closed
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = body()
        sys.stdout.flush()
        return status
    except (InputError, OSError) as error:
        closed = is_reader_gone(error)
        if not closed:
            print(f"error: {describe_error(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # or Python would complain of it again when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE if closed else EXIT_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def command(
    options: type, options_from: Callable[[dict[str, Any]], Any] | None = None
) -> Callable[[Callable[[Any], int]], Callable[..., int]]:
    """Turn a function of options into the ``main(argv=None)`` of its entry module, whose docstring describes it.

    What the flags cost to parse is all that ``--help`` costs: import the rest in the function.

    Parameters
    ----------
    options : a dataclass for :func:`parse_flags`
    options_from : makes the options of the flags that were given (default: ``options(**flags)``)

    Returns
    -------
    a decorator; the function's result is the exit status
    """

    def entry(body: Callable[[Any], int]) -> Callable[..., int]:
        """Make `body` a ``main(argv)``."""
        module = sys.modules[body.__module__]
        name = module.__spec__.name.removesuffix(".__main__") if module.__spec__ else body.__module__

        @functools.wraps(body)
        def main(argv: list[str] | None = None) -> int:
            flags = parse_flags(options, argv, prog=f"python -m {name}", description=module.__doc__)
            return run_main(lambda: body(options_from(flags) if options_from else options(**flags)))

        return main

    return entry


def require(module: str, extra: str) -> Any:
    """Import an optional package where it is used.

    Raises
    ------
    InputError : it is not installed; the message names the extra to install
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{module} is needed here ({error}); in the folder of melshard: pip install -e '.[{extra}]'"
        ) from error
