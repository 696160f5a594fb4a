"""Collects the messages that give advice, provokes them, and follows the advice.

Advice is what stands behind the last semicolon of a message. A trial provokes one message by real
inputs, carries out what its text says, and tries again: that must succeed, or come to another
message. Alternatives are followed one by one.
"""

import ast
import itertools
import logging
import re
import shutil
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from attnseg.errors import AttnsegError

SOURCE = Path(__file__).parents[2] / "src/attnseg"
FIELD = re.compile(r"%(?:\.\d)?[sdrfg]|\{\}")


@dataclass(frozen=True)
class Message:
    """A text in the source, whose fields are `{}`, and the files that hold it."""

    files: tuple[str, ...]
    text: str

    @property
    def advice(self) -> str:
        return self.text.rpartition("; ")[2]

    @cached_property
    def letters(self) -> int:
        return len(FIELD.sub("", self.text))

    @cached_property
    def longest(self) -> str:
        return max(FIELD.split(self.text), key=len)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        parts = map(re.escape, FIELD.split(self.text))
        return re.compile(".*?".join(parts) + r"(?: \(and \d+ more problems\))?$", re.DOTALL)


@cache
def collect_messages(prose: re.Pattern[str]) -> tuple[Message, ...]:
    """Return every text of the source with advice; `prose` matches `file: text` of the others."""
    messages: dict[str, tuple[str, ...]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        file = path.relative_to(SOURCE).as_posix()
        for text in list_texts(ast.parse(path.read_text())):
            if "; " in text and "\n" not in text and not prose.search(f"{file}: {text}"):
                messages[text] = (*messages.get(text, ()), file)
    return tuple(Message(files, text) for text, files in messages.items())


def list_texts(tree: ast.AST) -> list[str]:
    """Return all texts but docstrings, f-strings as a whole."""
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    inner = (ast.JoinedStr, ast.FormattedValue, ast.Expr)
    return [
        text_of(node)
        for node in parents
        if isinstance(node, ast.Constant | ast.JoinedStr) and not isinstance(parents[node], inner)
    ]


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def find_message(text: str, messages: Iterable[Message]) -> Message | None:
    """Return the message in the source that a text comes from: that with the most letters."""
    fitting = [
        message for message in messages if message.longest in text and message.pattern.search(text)
    ]
    return max(fitting, key=lambda message: message.letters, default=None)


class Records(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def provoke(attempt: Callable[[], Any]) -> list[str]:
    """Return what an attempt says: its problems, or else its warnings that give advice.

    An attempt may also return a text or a list of texts, such as the remarks of a report.
    """
    records, log = Records(), logging.getLogger("attnseg")
    log.addHandler(records)
    try:
        said = attempt()
    except (AttnsegError, ValueError) as error:
        return [str(problem) for problem in getattr(error, "problems", [error])]
    finally:
        log.removeHandler(records)
    said = [said] if isinstance(said, str) else said if isinstance(said, list) else []
    return [
        text
        for text in (*records.texts, *said)
        if isinstance(text, str) and "; " in text and " taken as " not in text
    ]


@dataclass
class Trial:
    """One attempt that goes wrong, and what is done about it.

    Attributes:
        attempt: called with the folder of the files and the options, as keywords or as a list.
        options: `KEY=VALUE`, separated by spaces (a backslash keeps one): the last is to blame.
        make: writes the files as they should be.
        damage: spoils them.
        follow: instead of what the kinds of advice below say: by pattern of the message, the
            options that follow from its groups, or a function of the trial and the message.
        further: another message that counts as further; by default everything must be well.
    """

    attempt: Callable[..., Any]
    options: str = ""
    make: Callable[[Path], Any] | None = None
    damage: Callable[[Path], Any] | None = None
    follow: Mapping[str, Any] = field(default_factory=dict)
    further: str = "$^"
    folder: Path = Path()
    exclude: tuple[str, ...] = ()
    place: Path | None = None

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def pristine(self) -> Path:
        return self.folder / "pristine"

    def check(self, folder: Path, messages: Iterable[Message]) -> list[Message]:
        """Return the messages whose advice was followed; an `AssertionError` names what failed."""
        self.folder = folder
        self.root.mkdir(parents=True)
        if self.make:
            self.make(self.root)
        copy_tree(self.root, self.pristine)
        if self.damage:
            self.damage(self.root)
        copy_tree(self.root, folder / "damaged")
        wrong = self.options
        texts = self.say()
        assert texts, f"nothing is said about {wrong}"
        known = [find_message(text, messages) for text in texts]
        assert all(known), f"not in the source: {texts}"
        for number in range(max(len(self.list_ways(text)) for text in texts)):
            copy_tree(folder / "damaged", self.root)
            self.options, self.exclude, self.place = wrong, (), None
            self.follow_to_the_end(texts, number)
        return [message for message in known if message]

    def follow_to_the_end(self, texts: list[str], number: int) -> None:
        """Follow the advice of each text, of the next ones, and so on; none may come again."""
        past: list[str] = []
        while texts:
            past += texts
            for text in texts:
                ways = self.list_ways(text)
                ways[min(number, len(ways) - 1)](self, text)
            texts = [text for text in self.say() if not re.search(self.further, text)]
            again = set(texts) & set(past)
            assert not again, f"{past}\n  followed to {self.options}, comes again: {again}"

    def say(self) -> list[str]:
        return provoke(lambda: self.attempt(self))

    def list_ways(self, text: str) -> list[Callable[["Trial", str], None]]:
        """Return a function for each alternative of a text's advice."""
        advice = text.rpartition("; ")[2]
        own = {pattern: way for pattern, way in self.follow.items() if re.search(pattern, text)}
        usual = (OPTION_WAYS if self.options else {}) | (FILE_WAYS if self.make else {})
        ways = []
        for pattern, way in (own or usual).items():
            if match := re.search(pattern, text if own else advice):
                ways += [way if callable(way) else give_options(way, match)]
        assert ways, f"nobody knows how to follow: {text}"
        return ways

    @property
    def items(self) -> list[str]:
        return [each.replace("\\ ", " ") for each in re.findall(r"(?:\\ |\S)+", self.options)]

    @property
    def keywords(self) -> dict[str, Any]:
        pairs = (item.split("=", 1) for item in self.items)
        return {
            key: yaml.safe_load(re.sub(r"(?<=\w):(?=[\w{])", ": ", value)) for key, value in pairs
        }


def copy_tree(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def give_options(options: str, match: re.Match[str]) -> Callable[[Trial, str], None]:
    """Return a way: options in which `{1}` stands for what the message says."""

    def way(trial: Trial, text: str) -> None:
        trial.options = options.format(*match.group(0, *range(1, (match.re.groups or 0) + 1)))

    return way


# How advice is followed: a pattern of the advice, and what a person does then.


def replace_value(pattern: str) -> Callable[[Trial, str], None]:
    def way(trial: Trial, text: str) -> None:
        match = re.search(pattern, text.rpartition("; ")[2])
        assert match, text
        *others, last = trial.items
        others = [other.replace(" ", "\\ ") for other in others]
        trial.options = " ".join([*others, f"{last.split('=')[0]}={match[1]}"])

    return way


def set_option(trial: Trial, text: str) -> None:
    for key, value in re.findall(r"([a-z_.]+)=(\S+?)(?=[,;)]?(?:\s|$))", text.rpartition("; ")[2]):
        others = [o.replace(" ", "\\ ") for o in trial.items if o.split("=")[0] != key]
        trial.options = " ".join([*others, f"{key}={value}"])


def drop_option(trial: Trial, text: str) -> None:
    trial.options = " ".join(other.replace(" ", "\\ ") for other in trial.items[:-1])


def place_of(trial: Trial, text: str) -> Path:
    """Return the path that a message begins with."""
    return next(
        path
        for end in re.finditer(r"(?=: )|$", text)
        if os_exists(path := Path(text[: end.start()])) or trial.root in path.parents
    )


def os_exists(path: Path) -> bool:
    return path.is_symlink() or path.exists()


def restore(trial: Trial, text: str) -> None:
    """Bring back every file that the message names, as it was."""
    place = place_of(trial, text)
    own = trial.pristine / place.relative_to(trial.root)
    names = {own}
    for path in trial.pristine.rglob("*"):
        stem = path.name.split(".")[0]
        named = {path.name, stem} if len(stem) > 3 else {path.name}
        pair = "the pair" in text and own.parent == path.parent and own.stem.split(".")[0] == stem
        if pair or (
            path.is_file() and any(re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text) for n in named)
        ):
            names.add(path)
    for path in names:
        target = trial.root / path.relative_to(trial.pristine)
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        elif os_exists(target):
            target.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, symlinks=True)
        elif path.exists():
            shutil.copy2(path, target)


def restore_all(trial: Trial, text: str) -> None:
    copy_tree(trial.pristine, trial.root)


def remove(trial: Trial, text: str) -> None:
    place = place_of(trial, text)
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def remove_case(trial: Trial, text: str) -> None:
    """Remove all files of the case whose file the message names, in its part of the dataset."""
    place = place_of(trial, text)
    case = place.name.split(".")[0].removesuffix("_0000").removesuffix("_0001")
    for path in place.parent.parent.glob(f"*{place.parent.name[-2:]}/{case}[._]*"):
        path.unlink()


def exclude(trial: Trial, text: str) -> None:
    """Exclude what the message names: the attempt compares it with its cases."""
    trial.exclude = (*trial.exclude, text)


OPTION_WAYS = {
    r"did you mean": replace_value(r"did you mean ([^?]+)\?"),
    r"(?:choose|expected) one of": replace_value(r"one of ([^,\s]+)"),
    r"nearest: ": replace_value(r"nearest: (\S+)"),
    r"(use|give|at most|at least|choose) -?\d": replace_value(
        r"(?:use|give|most|least|choose) (-?[\d.]+)"
    ),
    r"(^|[\s('])[a-z_.]+=\S": set_option,
    r"^leave (it|one) out|^remove it$": drop_option,
}
FILE_WAYS = {
    r"restore|repair|mend|correct (?!dataset)|download it again|round them|^crop": restore,
    r"(save|convert) (it|them)|give the mask|^expected|(add|name) (it|one) or|rename it": restore,
    r"^unpack|restore the folder": restore_all,
    r"(?<!not )\bremove (it|one|the file)|^delete|keep one file": remove,
    r"remove the case": remove_case,
    r"split it": restore,
    r"exclude the (case|scan)": exclude,
}


def check_trials(
    trials: Mapping[str, Trial], folder: Path, messages: Iterable[Message]
) -> tuple[set[Message], list[str]]:
    """Return the messages whose advice was followed, and what went wrong, by trial."""
    followed: set[Message] = set()
    problems = []
    for number, (name, trial) in enumerate(trials.items()):
        try:
            # A trial changes as advice is followed, so each check has a copy.
            followed.update(replace(trial).check(folder / str(number), messages))
        except AssertionError as error:
            problems.append(f"{name}: {error}")
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            problems.append(f"{name}: {error!r} in {where.name}, line {where.lineno}")
    return followed, problems


def trials_of(attempt: Callable[..., Any], *options: str, **named: Any) -> dict[str, Trial]:
    """Return a trial for each list of options."""
    return {
        each: Trial(lambda trial: attempt(**trial.keywords), each, **named)
        for each in itertools.chain(options)
    }
