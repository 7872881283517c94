"""From a bare machine to `cli/__main__.py`: installs what a command needs, then becomes it."""

import os
import sys
from itertools import takewhile

from cli import environment, home, lock
from cli.console import open_standard_streams
from cli.errors import CliError, explain_os_error
from cli.home import PREPARE_LOCK, REPOSITORY, VENV_PYTHON
from cli.prepare import stamps

HELP = """\
Canopy: a self-hosted ChatGPT-like service on RabbitMQ.

  ./canopy up                    install what is missing, start everything, print the address
  ./canopy up --engine echo      the same without a model: answers repeat the question
  ./canopy down                  stop it               ./canopy status    what runs
  ./canopy doctor                what this machine lacks, with the remedy
  ./canopy node NAME --parent P  one more worker       ./canopy tree      the tree of nodes
  ./canopy join TOKEN            a node here, below the Canopy of another machine
  ./canopy key create            an API key            ./canopy login     a fresh login link
  ./canopy prepare               install what `up` needs, and start nothing
  ./canopy test                  all tests

Nothing is installed yet: the first `./canopy up` does that and takes a few minutes.
State lives in CANOPY_HOME (default: var/ beside this program)."""

# command -> packages of the operating system; other commands need the virtual environment alone
_FOR_TESTS = [
    "rabbitmq-server",
    "chromium",
    "libatomic1",
    "postgresql",
    "gcc",
    "libc6-dev",
    "openssl",
    "systemd",
    "nginx-light",
    "caddy",
    "default-jdk-headless",
    "slapd",
]
_TOKEN_BEGINS, _TOKEN_VARIABLE = "canopy1.", "CANOPY_NODE_TOKEN"
_SYSTEM = {"up": ["rabbitmq-server"], "prepare": ["rabbitmq-server"], "test": _FOR_TESTS}
_REQUIREMENTS = {"test": [stamps.RUNTIME, stamps.LDAP, stamps.DEVELOPMENT]}
# What compiles python-ldap, of which there are no ready builds.
_TO_BUILD_LDAP = ["gcc", "libc6-dev", "libldap2-dev", "libsasl2-dev", "python3-dev"]


def main(arguments: list[str]) -> int:
    """Prepares for the command in `arguments` and becomes it; returns only on failure."""
    open_standard_streams()
    _hide_token(arguments)
    try:
        if _is_help(arguments) and not VENV_PYTHON.exists():
            print(HELP)
            return 0
        if arguments == ["doctor"]:
            return _doctor()
        if arguments[:1] == ["up"] and not _is_help(arguments):
            lock.take(home.read()).pass_on()  # first of all, so that `down` finds us
        if not _is_help(arguments):
            prepare(arguments[0])
        _become(arguments)
    except CliError as error:
        print(f"canopy: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"canopy: {explain_os_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _hide_token(arguments: list[str]) -> None:
    """Begins anew without the token of `join` in the process list: it has a password in it, and
    preparation takes minutes.
    """
    pieces = token_pieces(arguments) if arguments[:1] == ["join"] else []
    if not pieces:
        return
    os.environ[_TOKEN_VARIABLE] = " ".join(pieces)
    words = list(sys.orig_argv)
    at = len(words) - len(arguments) + arguments.index(pieces[0])
    del words[at : at + len(pieces)]
    os.execv(sys.executable, words)  # noqa: S606 - no shell


def token_pieces(arguments: list[str]) -> list[str]:
    """The words that are a token: one, or several where a broken line was pasted."""
    for begin, word in enumerate(arguments):
        if _TOKEN_BEGINS in word:
            return [word, *takewhile(_may_be_piece, arguments[begin + 1 :])]
    return []


def _may_be_piece(word: str) -> bool:
    return not word.startswith(("-", "https://", "http://"))


def prepare(command: str) -> None:
    """Installs what `command` needs before it can parse its options; a no-op the second time."""
    packages = _SYSTEM.get(command, [])
    if command != "test" and environment.read().amqp_url:  # `up` will start no broker
        packages = []
    requirements = _REQUIREMENTS.get(command, [stamps.RUNTIME])
    if environment.read().ldap_url and stamps.LDAP not in requirements:
        requirements = [*requirements, stamps.LDAP]
    if stamps.LDAP in requirements and stamps.outdated([stamps.LDAP]):
        packages = list(dict.fromkeys([*packages, *_TO_BUILD_LDAP]))
    if packages or stamps.outdated(requirements):
        _install(packages, requirements)


def _install(packages: list[str], requirements: list[str]) -> None:
    from cli.prepare import steps, system, venv  # here, as most commands need none of them

    if not system.missing(packages) and not stamps.outdated(requirements):
        return
    first: list[str] = []
    if not system.can_make_environments() and not VENV_PYTHON.exists():
        first = ["python3-venv"]
    system.check_rights(system.missing(packages + first))  # one line for all, before any work
    state = home.read()
    state.make()
    logs = state.logs
    with steps.exclusive(PREPARE_LOCK):
        steps.run_together([system.step(first)], logs)  # venv.step needs it
        steps.run_together([system.step(packages), venv.step(requirements)], logs)


def _doctor() -> int:
    from cli.prepare import doctor

    return doctor.main()


def _is_help(arguments: list[str]) -> bool:
    if not arguments or arguments[0] == "help":
        return True
    return "-h" in arguments or "--help" in arguments


def _become(arguments: list[str]) -> None:
    """Replaces this process, so that signals and the exit status are the command's own."""
    words = arguments
    if not arguments or arguments[0] == "help":
        words = ["--help"]
    # The file and not `-m cli`, whose import of runpy every command would pay.
    program = str(REPOSITORY / "cli" / "__main__.py")
    command = [str(VENV_PYTHON), "-P", program, *words]
    os.execve(VENV_PYTHON, command, home.module_environment())  # noqa: S606 - no shell
