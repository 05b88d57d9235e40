"""The end of a run: its exit code, and the reasons of its dead letters. Needs no Beam.

0    done, with at most as many dead letters as `Allowance` allows
2    a mistake in the arguments, or a file that cannot be read or written
3    more dead letters than allowed
4    the store failed
130  interrupted
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from murmur_beam.errors import ConfigurationError, PermanentError
from murmur_beam.model import DeadLetter

SETTLED, MISTAKE, TOO_MANY, STORE_FAILED, INTERRUPTED = 0, 2, 3, 4, 130

FLAG = "--max_dead_letters"
HELP = (
    "dead letters allowed in a successful run, as a number or as a share of all records such as 1%%; with more of them "
    "the exit code is 3, or 4 if the store failed (10%%, and not all)"
)

_MOST_REASONS = 5
"""Number of reasons shown."""
_KEPT_REASONS = 200
"""Number of different reasons counted separately."""
_STORE = "store: "
_OTHERS = "other reasons"
# Parts that differ from record to record: quoted values, and numbers.
_VALUES = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?<![\w-])\d[\d,._]*\b")


@dataclass(frozen=True)
class Allowance:
    """The number of dead letters that a successful run may have.

    Attributes:
        number: limit; None for a share.
        percent: limit as a share of all records.
        all_of_them: whether all records may be dead letters.
    """

    number: int | None = None
    percent: float = 10.0
    all_of_them: bool = False

    @classmethod
    def parse(cls, text: str | None) -> Allowance:
        """Read ``5``, ``1%`` or None for the default.

        Raises:
            ConfigurationError: the text is something else.
        """
        if text is None:
            return cls()
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text.strip(), re.ASCII)
        if match is None or (not match[2] and "." in match[1]) or (match[2] and float(match[1]) > 100):
            raise ConfigurationError(FLAG, f"expected a number or a percentage such as 1%, got {text!r:.80}")
        if match[2]:
            return cls(percent=float(match[1]), all_of_them=True)
        return cls(number=int(match[1]), all_of_them=True)

    def allows(self, dead: int, total: int) -> bool:
        """Return whether a run of ``total`` records may have ``dead`` dead letters."""
        if dead == 0:
            return True
        if self.number is not None:
            return dead <= self.number
        return dead * 100 <= self.percent * total and (self.all_of_them or dead < total)

    def __str__(self) -> str:
        return f"{self.number:,}" if self.number is not None else f"{self.percent:g} %"


def reason_of(letter: DeadLetter) -> str:
    """The reason of a letter, without the parts that differ from record to record."""
    text = _VALUES.sub(lambda value: value[0] if _is_name(value[0]) else "...", letter.error_message.partition(";")[0])
    text = " ".join(text.split())[:100]
    return f"{_STORE if _is_the_store_s(letter) else ''}{text or letter.error_type}"


def _is_name(value: str) -> bool:
    """Return whether a quoted text is a field's name, not a value. Names are few, and show where to look."""
    return re.fullmatch(r"'[A-Za-z_][\w.]{0,30}'", value) is not None


def _is_the_store_s(letter: DeadLetter) -> bool:
    return letter.stage == "merge" and letter.error_type not in _permanent()


def _permanent(base: type[Exception] = PermanentError) -> Iterator[str]:
    yield base.__name__
    for kind in base.__subclasses__():
        yield from _permanent(kind)


class Reasons:
    """Counts of reasons; a bounded number of them is counted separately.

    Args:
        counts: initial counts.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self.counts: Counter[str] = Counter(counts)

    def add(self, letter: DeadLetter) -> str:
        """Count a letter; returns the reason under which it was counted."""
        reason = reason_of(letter)
        if reason not in self.counts and len(self.counts) >= _KEPT_REASONS:
            reason = f"{_STORE if reason.startswith(_STORE) else ''}{_OTHERS}"
        self.counts[reason] += 1
        return reason

    @property
    def of_the_store(self) -> int:
        """Number of letters caused by the store."""
        return sum(n for reason, n in self.counts.items() if reason.startswith(_STORE))


def end(who: str, dead: int, total: int, reasons: Reasons, allowance: Allowance) -> int:
    """Report the reasons of dead letters on stderr, and whether they are too many; return the exit code.

    Args:
        who: the program's name.
        dead: number of dead letters.
        total: number of records.
        reasons: of the dead letters.
        allowance: for dead letters.
    """
    if not dead:
        return SETTLED
    common = reasons.counts.most_common(_MOST_REASONS)
    width = max((len(f"{n:,}") for _, n in common), default=0)
    count = f"{dead:,} dead letter{'s' * (dead > 1)}"
    print(f"{who}: {count}{'; the most common reasons:' if common else ''}", file=sys.stderr)
    for reason, n in common:
        print(f"  {n:>{width},}  {reason}", file=sys.stderr)
    if allowance.allows(dead, total):
        return SETTLED
    store = not allowance.allows(reasons.of_the_store, total)
    what = (
        "the store failed" if store else f"{FLAG} allows {allowance}{'' if allowance.all_of_them else ', and not all'}"
    )
    print(f"{who}: error: {dead:,} of {total:,} records became dead letters: {what}", file=sys.stderr)
    return STORE_FAILED if store else TOO_MANY
