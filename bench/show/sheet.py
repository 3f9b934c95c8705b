"""Tables that fit the terminal: names are never cut, what has no room is left out and said, sentences stand below."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

LEAST_PROSE = 24  # columns of the terminal, below which a sentence is not put into a table
LABELS = 3  # whose a sentence below the table is; of more rows their number
GAP = 2  # between two columns


@dataclass(frozen=True)
class Col:
    """A column. `rank` 0: it is there at any width; of the others the highest goes first where not all fit."""

    title: str
    right: bool = False
    rank: int = 0
    prose: bool = False  # sentences: they wrap, and take the room that is left
    least: int = LEAST_PROSE  # width of a prose column
    below: bool = False  # where it is left out its cells stand below the table


class Sheet:
    """A table and the lines below it."""

    def __init__(self, title: str, columns: Sequence[Col]):
        self.title, self.columns = title, list(columns)
        self.rows: list[list[Text] | None] = []  # None: a line between two sections
        self.labels: list[str] = []  # of each row, where a cell of it stands below the table
        self.below: list[Text] = []
        self.tight = False  # sentences may be as narrow as they can
        self.left_out: list[str] = []  # titles, told beside those that found no room

    def add(self, *cells: str | Text, label: str = "") -> None:
        self.labels.append(label)
        self.rows.append([cell if isinstance(cell, Text) else Text(cell) for cell in cells])

    def section(self) -> None:
        self.labels.append("")
        self.rows.append(None)

    def tell(self, text: str, style: str = "dim") -> None:
        """A line of its own below the table, of the whole width."""
        self.below.append(Text(text, style=style))

    def print(self, screen: Console) -> None:
        shown = list(range(len(self.columns)))
        if screen.is_terminal:
            while self._needs(shown) > screen.width and (last := self._last(shown)) is not None:
                shown.remove(last)
        else:  # a file or a pipe has room for all, be it that sentences are narrower
            self.tight = self._needs(shown) > screen.width
            screen.width = max(screen.width, self._needs(shown))
        if self.title:
            screen.print(Text(self.title, style="bold"))
        if self.rows:
            screen.print(self._table(shown, screen.width))
        gone = [i for i in range(len(self.columns)) if i not in shown]
        for line in [*self._moved(gone), *self.below]:
            print_line(screen, line)
        names = [*self.left_out, *(self.columns[i].title for i in gone if not self.columns[i].below)]
        if names and self.rows:
            titles = ", ".join(" ".join(title.split()) for title in names)
            print_line(screen, Text(f"not shown at {screen.width} columns: {titles}", style="dim"))

    def _moved(self, gone: list[int]) -> list[Text]:
        """The sentences of columns that had no room, each with whose it is; the same of several rows once."""
        told = []
        for i in (i for i in gone if self.columns[i].below):
            whose: dict[str, list[str]] = {}
            for row, label in zip(self.rows, self.labels, strict=True):
                if row and row[i].plain:
                    whose.setdefault(row[i].plain, []).append(label)
            for sentence, labels in whose.items():
                more = [f"{len(labels) - LABELS} more"] if len(labels) > LABELS else []
                names = ", ".join(filter(None, [*labels[:LABELS], *more]))
                told.append(Text(f"{names}: {sentence}" if names else sentence))
        return told

    def _last(self, shown: list[int]) -> int | None:
        """The column that goes next."""
        able = [i for i in shown if self.columns[i].rank]
        return max(able, key=lambda i: (self.columns[i].rank, i), default=None)

    def _width(self, i: int) -> int:
        c = self.columns[i]
        cells = [row[i].plain for row in self.rows if row]
        widest = _widest([c.title, *([] if c.prose else cells)])
        if not c.prose:
            return widest
        least = LEAST_PROSE if self.tight else c.least
        words = _widest(word for cell in cells for word in cell.split())
        return max(widest, words, min(least, _widest(cells)))

    def _needs(self, shown: list[int]) -> int:
        return sum(map(self._width, shown)) + GAP * (len(shown) - 1) + 1

    def _table(self, shown: list[int], width: int) -> Table:
        table = bare_table()
        table.show_header = any(self.columns[i].title for i in shown)
        fits = self._needs(shown) <= width
        for i in shown:
            c = self.columns[i]
            # Where even what stays does not fit, all but names may wrap.
            fixed = fits or i == 0
            table.add_column(
                c.title,
                justify="right" if c.right else "left",
                no_wrap=fixed and not c.prose,
                overflow="fold",
                min_width=self._width(i) if fixed else None,
            )
        for row in self.rows:
            if row is None:
                table.add_section()
            else:
                table.add_row(*[row[i] for i in shown])
        return table


def _widest(texts: Iterable[str]) -> int:
    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def bare_table() -> Table:
    """A head, a rule, rows; two blanks between the columns and none around."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))


def print_line(screen: Console, text: Text) -> None:
    """A line below a table; what is longer than the terminal goes on further in."""
    if screen.is_terminal:
        screen.print(Padding(text, (0, 0, 0, 2)))
    else:
        screen.print(Text("  ") + text, soft_wrap=True)
