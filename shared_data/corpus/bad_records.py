"""What happens to a record that cannot be used: it stops the job (`on_bad_record = "stop"`), or is skipped, counted and named.

bad = BadRecords("skip"); chats = [bad.attempt(format_chat, record) for record in records]; bad.report("chats.jsonl")
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

from shared_data.errors import UserError

Policy = Literal["stop", "skip"]
NAMED = 5  # of the skipped records
UNREAD_NAMED = 12  # of the fields that are not read


class BadRecords:
    """Counts the records of one source: those that were read, were skipped, or are too long and `cut` off at the end."""

    def __init__(self, policy: Policy = "stop", is_silent: bool = False) -> None:
        """is_silent: report nothing, as where the records are read again later."""
        self.policy, self.is_silent = policy, is_silent
        self.read = self.skipped = self.cut = 0
        self.first: list[str] = []
        self.left_out: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()  # fields of records
        self.limit: str | None = None

    def refuse(self, error: UserError, is_counted: bool = True) -> None:
        """Raise the error, or count it where bad records are skipped. `is_counted`: whether `read` has the record already."""
        if self.policy == "stop":
            raise error
        self.read += not is_counted
        self.skipped += 1
        if len(self.first) < NAMED:
            self.first.append(str(error))

    def attempt(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value; None where it raises a `UserError` and bad records are skipped."""
        try:
            return function(*arguments)
        except UserError as error:
            self.refuse(error)
            return None

    def is_good(self, check: Callable[..., Any], *arguments: Any) -> bool:
        """Whether the check passes; False where it raises a `UserError` and bad records are skipped."""
        skipped = self.skipped
        self.attempt(check, *arguments)
        return self.skipped == skipped

    def up_to(self, limit: int, setting: str, records: Iterable[Any]) -> Iterator[Any]:
        """The first `limit` records; where there are as many, `report` names the setting that says so."""
        count = 0
        for record in islice(records, limit):
            yield record
            count += 1
        if count == limit:
            self.limit = f"the first {limit:,} records are used; raise {setting} for those behind them, if there are any"

    def leave_out(self, what: str) -> None:
        """Count something of a record that is not used, though the record is."""
        self.left_out[what] += 1

    def metrics(self) -> dict[str, int]:
        """The counts for metrics.json; none where no record was read, as of the story world."""
        names = ("read", "skipped", "cut")
        return {f"records_{name}": getattr(self, name) for name in names} if self.read else {}

    @contextmanager
    def reported(self, source: str) -> Iterator[None]:
        """Report at the end of the block, also where a stream is left before its end."""
        try:
            yield
        finally:
            self.report(source)

    def report(self, source: str) -> None:
        """Say on stderr what was skipped and left out."""
        if self.is_silent:
            return
        if self.skipped:
            print(
                f"{source}: {self.skipped:,} of {self.read:,} records were skipped, such as", file=sys.stderr
            )
            for line in self.first:
                print(f"    {line}", file=sys.stderr)
        if self.limit is not None and self.read:
            print(f"{source}: {self.limit}", file=sys.stderr)
        if self.unread:
            counts = ", ".join(
                f"{name!r} ({count:,})" for name, count in self.unread.most_common(UNREAD_NAMED)
            )
            more = f" and {len(self.unread) - UNREAD_NAMED:,} more" if len(self.unread) > UNREAD_NAMED else ""
            print(f"{source}: fields of records that are not read: {counts}{more}", file=sys.stderr)
        for what, count in self.left_out.items():
            print(f"{source}: in {count:,} {'records' if count > 1 else 'record'} {what}", file=sys.stderr)
