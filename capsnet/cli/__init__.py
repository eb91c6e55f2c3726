"""The command line: arguments → a command, and a user's mistake → one line on stderr and exit status 2."""

import contextlib
import errno
import logging
import os
import signal
import sys
from importlib import import_module

import click

from capsnet.analysis import SUBJECTS
from capsnet.cli.options import OLD_COMMANDS, OLD_OPTIONS
from capsnet.errors import InputError, printable
from capsnet.interrupt import Interrupted, interrupting
from capsnet.launch import is_first, is_first_here, leave, process_count

COMMANDS = (
    {"train": "train", "evaluate": "run", "predict": "run", "report": "analysis"}
    | dict.fromkeys(SUBJECTS, "analysis")
    | {"import-weights": "run"}
)  # name → module of this package, imported when the command is asked for
SYSTEM_ERRORS = {  # what a system lacks or forbids and a user can change; other errors are faults of this package
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE),
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE),
}
NOISY_LOGGERS = (  # about a missing GPU, bf16 and processes that connect
    *("torch.utils.cpp_extension", "lightning_fabric.utilities.rank_zero", "lightning_fabric.utilities.distributed"),
)


class Commands(click.Group):
    """The commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command."""
        if name not in COMMANDS:
            return None
        module = import_module(f"capsnet.cli.{COMMANDS[name]}")
        command: click.Command = (
            module.analysis_command(name) if name in SUBJECTS else getattr(module, name.replace("-", "_"))
        )
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that is asked for; a wrong name is answered with the nearest or the new one."""
        name = args[0].replace("_", "-")
        if name in OLD_COMMANDS:
            raise InputError(OLD_COMMANDS[name])
        if name not in COMMANDS and not name.startswith("-"):
            raise click.NoSuchCommand(name, possibilities=COMMANDS, ctx=ctx)
        if name != "train" and process_count() > 1:
            raise InputError(f"{name} runs in one process, not in {process_count()}: start it without torchrun")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands and their help lines; analyses are not imported for it, as that takes seconds."""
        loaded = {name: self.get_command(ctx, name) for name in COMMANDS if name not in SUBJECTS}
        rows = [(name, command.get_short_help_str(limit=200)) for name, command in loaded.items() if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        with formatter.section("Analyses of a run, written to its folder as PNG and JSON"):
            formatter.write_dl(list(SUBJECTS.items()))


@click.group(
    cls=Commands,
    no_args_is_help=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 120,
        "show_default": True,
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)
@click.version_option(package_name="capsnet", message="capsnet %(version)s")
def commands() -> None:
    """Capsule networks with dynamic routing: train, evaluate, predict, analyse.

    `capsnet COMMAND --help` shows the options of a command.
    """


def main() -> None:
    """Run the command line of this process; a user's mistake becomes one line on stderr and exit status 2.

    SIGTERM and SIGHUP end it as Ctrl-C does, with the status that a shell gives: 128 and the signal's number.
    """
    try:
        with interrupting():
            configure_logging()
            with contextlib.suppress(click.exceptions.Exit):  # after a help
                execute(sys.argv[1:])
            if lost_its_reader():
                sys.exit(128 + signal.SIGPIPE)
            if process_count() > 1:
                leave(0)
    except click.UsageError as error:
        fail(explanation(error))
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        end(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in SYSTEM_ERRORS:
            raise
        fail(f"{error.filename or 'the system'}: {error.strerror}: correct this; --resume continues a training")
    except KeyboardInterrupt as interruption:
        end(128 + (interruption.number if isinstance(interruption, Interrupted) else signal.SIGINT))


def execute(arguments: list[str]) -> None:
    """Run a command line.

    Raises UsageError and InputError for a user's mistake, and click's Exit after a help. `Group.main` would do the
    same, but replace the signal in Interrupted.
    """
    with commands.make_context("capsnet", arguments) as context:
        commands.invoke(context)


def configure_logging() -> None:
    """Print this package's messages in the first process, and no other library's."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("capsnet").setLevel(logging.INFO if is_first() else logging.CRITICAL)
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def explanation(error: click.UsageError) -> str:
    """Return one line on a wrong command line: the new name of an old option, or click's words."""
    known = {name for param in error.cmd.params for name in (*param.opts, *param.secondary_opts)} if error.cmd else ()
    if isinstance(error, click.NoSuchOption):
        if error.option_name == "--errors-only":
            return "--errors-only is now a command: `capsnet errors RUN`"
        if (new := new_name(error.option_name)) in known:
            return f"{error.option_name} is now called {new}"
    words = printable(error.format_message())
    words = words if len(words) < 500 else f"{words[:300]} ... {words[-150:]}"
    return f"{words} Try `{error.ctx.command_path} --help`." if error.ctx else words


def new_name(option: str) -> str | None:
    """Return the name that an option of earlier versions has now; None for any other."""
    from capsnet.recipes import OLD_NAMES, flag

    renamed = OLD_OPTIONS | {flag(old): flag(new) for old, new in OLD_NAMES.items()}
    return renamed.get(option.replace("--no-", "--"))


def fail(message: str) -> None:
    """Print one line on stderr, in the first of a node's processes only, and end with status 2."""
    if is_first_here():
        with contextlib.suppress(OSError):  # of a terminal that was closed
            print(f"capsnet: {' '.join(message.split())}", file=sys.stderr)
    end(2)


def end(status: int) -> None:
    """End with a status, even if nobody reads what was printed."""
    lost_its_reader()
    leave(status)


def lost_its_reader() -> bool:
    """Return whether a pipe that we print to was closed, as by `capsnet ... | head`; unread output is dropped."""
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # also of a terminal that was closed
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            closed |= isinstance(error, BrokenPipeError)
    return closed
