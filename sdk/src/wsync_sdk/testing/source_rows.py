"""Rules of a source about what it reads: every row once, every value as it is, in the planned schema and in flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from wsync_sdk.errors import ConfigError
from wsync_sdk.source import REFUSED_COLUMNS, Query, ReadLimits, ReadPlan, Source, Split
from wsync_sdk.testing.elsewhere import call_elsewhere, peak_rss_bytes
from wsync_sdk.testing.harness import Context, SourceHarness
from wsync_sdk.testing.rules import ContractViolation, absent, differing_rows, refusal, require

__all__ = ["HOSTILE_TEXTS", "SAMPLE_TYPES", "SourceRowRules", "numbered", "planned", "read_rows", "values_of"]

SAMPLE_TYPES = pa.table(
    {
        "int_value": pa.array([0, -1, 2**63 - 1], pa.int64()),
        "float_value": pa.array([0.1, -2.5e-300, 1.7976931348623157e308], pa.float64()),
        "decimal_value": pa.array([Decimal("0.10"), Decimal("-99999999999999.99"), Decimal("12345678901234.56")], pa.decimal128(16, 2)),
        "text_value": pa.array(["plain", "two words", "x" * 1000], pa.string()),
        "bool_value": pa.array([True, False, True], pa.bool_()),
        "binary_value": pa.array([b"\x00\xff\x80", b"abc", b"\\x41"], pa.binary()),
        "date_value": pa.array([date(1900, 1, 1), date(2000, 2, 29), date(9999, 12, 31)], pa.date32()),
        "local_value": pa.array(
            [datetime(1969, 12, 31, 23, 59, 59, 999999), datetime(2024, 3, 31, 2, 30), datetime(2038, 1, 19)],  # noqa: DTZ001 - without zone is meant
            pa.timestamp("us"),
        ),
        "instant_value": pa.array(
            [datetime(1970, 1, 1, tzinfo=UTC), datetime(2024, 3, 31, 1, 30, tzinfo=UTC), datetime(2038, 1, 19, 1, 2, 3, 4, tzinfo=UTC)],
            pa.timestamp("us", tz="UTC"),
        ),
        "list_value": pa.array([["a", "b"], [], ["c"]], pa.list_(pa.string())),
    }
)
"""A column of each type that most warehouses have, without NULLs."""

# Decomposed accents, right-to-left text, a family of joined emoji, quotes, escapes and line ends: what careless layers normalise, cut or interpret.
HOSTILE_TEXTS = (
    "e\u0301 é",
    "שלום مرحبا",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "𝒳𐍈",
    "a'b\"c`d",
    "back\\slash \\n %s {x} :y",
    "tab\tline\nreturn\r\n",
    " blanks ",
    "NULL",
)
WIDE_COLUMNS = 200
HUGE_CELL_BYTES = 4 * 1024 * 1024
MANY_ROWS = 5000
FEW_ROWS = 600
SPLITS = 4
NULL_KEYS = 7
SMALL_BATCH_ROWS = 100
MEMORY_CELL = "m" * 2048
MEMORY_ROWS = (500, 20_000)
MEMORY_GROWTH_BYTES = 20 * 1024 * 1024


def numbered(rows: int) -> pa.Table:
    """`id` from 0 on, and a text for each."""
    return pa.table({"id": pa.array(range(rows), pa.int64()), "name": pa.array([f"row {n}" for n in range(rows)], pa.string())})


@contextmanager
def planned(source: Source, query: Query, limits: ReadLimits | None = None) -> Iterator[ReadPlan]:
    """A plan, released at the end."""
    plan = source.plan(query, limits or ReadLimits(), Context())
    try:
        yield plan
    finally:
        source.release(plan)


def read_rows(source: Source, splits: tuple[Split, ...]) -> list[dict[str, Any]]:
    """The rows of these splits, one after the other."""
    return [row for split in splits for batch in source.read(split) for row in batch.to_pylist()]


def values_of(harness: SourceHarness, query: Query) -> list[dict[str, Any]]:
    """The rows of a query, planned, read in one split and released."""
    with harness.source() as source, planned(source, query) as plan:
        return read_rows(source, plan.splits)


def _require_column(harness: SourceHarness, rows: pa.Table, name: str, *, what: str) -> None:
    """The column comes back as it was loaded; which values differ is not said, since values stay out of messages."""
    found = values_of(harness, harness.load(rows))
    require(not found or name in found[0], f"{what}: the column `{name}` is gone; read columns under their own names")
    require(not differing_rows([{name: row[name]} for row in found], rows.select([name]).to_pylist()), what)


class SourceRowRules:
    """What every row, value and batch has to be."""

    def test_types_come_back_exactly(self, harness: SourceHarness) -> None:
        """A value is read as it was stored: no decimal through a float, no instant moved by a zone. A changed value is sent as a change for ever."""
        for name in sorted(set(SAMPLE_TYPES.column_names) - harness.unsupported):
            kind = SAMPLE_TYPES.schema.field(name).type
            advice = f"values of `{name}` ({kind}) are changed on their way; map the warehouse's type to an Arrow type that holds them"
            _require_column(harness, SAMPLE_TYPES.select([name]), name, what=advice)

    def test_text_is_not_changed(self, harness: SourceHarness) -> None:
        """Text arrives code point by code point: nothing is normalised, trimmed, unescaped or cut. Keys are compared as text."""
        texts = pa.table({"body": pa.array(HOSTILE_TEXTS, pa.string())})
        advice = "text is changed on its way; decode as UTF-8 and do not normalise, trim, unescape or quote"
        _require_column(harness, texts, "body", what=advice)

    def test_null_stays_null_and_empty_stays_empty(self, harness: SourceHarness) -> None:
        """NULL, the empty text and zero are three different things, in the subscriber store too."""
        sparse = pa.table({"body": pa.array([None, ""], pa.string()), "size": pa.array([None, 0], pa.int64())})
        for name in sparse.column_names:
            _require_column(
                harness, sparse, name, what=f"NULLs of `{name}` are mixed up with empty values; keep the validity of each value"
            )

    def test_an_empty_result_has_the_schema_and_no_rows(self, harness: SourceHarness) -> None:
        """No rows is a result like any other: the schema must be known, or the mapping can't be checked and a guard can't speak."""
        with harness.source() as source, planned(source, harness.load(numbered(0))) as plan:
            require(plan.splits, "an empty result: plan at least one split")
            require(plan.schema.names == ["id", "name"], "an empty result: plan the same schema as for rows")
            require(not read_rows(source, plan.splits), "an empty result: yield no rows")

    def test_wide_rows_come_whole(self, harness: SourceHarness) -> None:
        """Warehouse tables have hundreds of columns; none is dropped, in their order."""
        wide = pa.table({f"c{n:03}": pa.array([n, -n], pa.int64()) for n in range(WIDE_COLUMNS)})

        found = values_of(harness, harness.load(wide))

        require(found and list(found[0]) == wide.column_names, f"a row of {WIDE_COLUMNS} columns: read all of them, in the query's order")
        require(not differing_rows(found, wide.to_pylist()), f"a row of {WIDE_COLUMNS} columns: values are changed or under a wrong name")

    def test_huge_cells_come_whole(self, harness: SourceHarness) -> None:
        """A document of 4 MiB in one cell is not cut, whatever the driver's buffer holds."""
        cells = pa.table({"body": pa.array(["é" * (HUGE_CELL_BYTES // 2), "small"], pa.string())})

        sizes = sorted(len(row["body"] or "") for row in values_of(harness, harness.load(cells)))

        require(sizes == [5, HUGE_CELL_BYTES // 2], "a cell of 4 MiB is cut; raise the driver's limit for one value or refuse the row")

    def test_every_row_comes_exactly_once(self, harness: SourceHarness) -> None:
        """Rows are neither lost at the end of a page or batch nor read twice."""
        rows = numbered(MANY_ROWS)
        with harness.source() as source, planned(source, harness.load(rows), ReadLimits(batch_rows=999)) as plan:
            difference = differing_rows(read_rows(source, plan.splits), rows.to_pylist())

        require(not difference, f"of {MANY_ROWS} rows in one split, {difference}; look at the ends of pages and batches")

    def test_splits_hold_every_row_once_together(self, harness: SourceHarness) -> None:
        """Splits partition the result: ranges neither overlap nor leave a gap, and rows whose `split_by` is NULL are in one of them.

        Without `parallel` there is one split, and it has all the rows.
        """
        keys = [None] * NULL_KEYS + list(range(FEW_ROWS))
        rows = pa.table({"id": pa.array(range(len(keys)), pa.int64()), "part": pa.array(keys, pa.int64())})
        with (
            harness.source() as source,
            planned(source, harness.load(rows, split_by="part"), ReadLimits(max_splits=SPLITS)) as plan,
        ):
            count = len(plan.splits)
            require(count <= SPLITS, f"{count} splits were planned; keep to `limits.max_splits`")
            require(sorted(split.index for split in plan.splits) == list(range(count)), "number the splits from 0 on without gaps")
            require(harness.capabilities.parallel or count == 1, "more than one split: declare `parallel`, or plan one")
            require(not harness.capabilities.parallel or count > 1, "`parallel` is declared, but `split_by` gives a single split")
            difference = differing_rows(read_rows(source, plan.splits), rows.to_pylist())

        require(not difference, f"over {count} splits {difference}; make ranges half-open and put rows without a key into one of them")

    def test_splits_can_be_read_at_the_same_time(self, harness: SourceHarness) -> None:
        """`read` is called from several threads, each for its own split; a connection or cursor that they share breaks the rows."""
        if not harness.capabilities.parallel:
            absent("`parallel` is not declared")
        rows = numbered(FEW_ROWS)
        limits = ReadLimits(max_splits=SPLITS, batch_rows=SMALL_BATCH_ROWS)
        with harness.source() as source, planned(source, harness.load(rows, split_by="id"), limits) as plan:
            # All reads are open before one goes on, else a machine with one core would run them in turn.
            reads = [source.read(split) for split in plan.splits]
            try:
                firsts = [next(read, None) for read in reads]
                with ThreadPoolExecutor(max_workers=len(reads)) as pool:
                    rests: list[list[pa.RecordBatch]] = list(pool.map(list, reads))
            except Exception as exc:
                raise ContractViolation(
                    f"splits read at the same time fail with {type(exc).__name__}; give each read its own session"
                ) from exc
        found = [row for first in firsts if first is not None for row in first.to_pylist()]
        found += [row for rest in rests for batch in rest for row in batch.to_pylist()]

        difference = differing_rows(found, rows.to_pylist())
        require(not difference, f"splits read at the same time: {difference}; give each read its own session and cursor")

    def test_batches_have_the_plans_schema(self, harness: SourceHarness) -> None:
        """Staging writes the schema before the first batch; a type, an order or a nullability that differs fails the run."""
        with harness.source() as source, planned(source, harness.load(numbered(FEW_ROWS)), ReadLimits(batch_rows=SMALL_BATCH_ROWS)) as plan:
            same = all(batch.schema.equals(plan.schema, check_metadata=True) for split in plan.splits for batch in source.read(split))

        require(same, "a batch differs from `plan.schema` in names, types, nullability or metadata; cast every batch to the planned schema")

    def test_batches_keep_to_the_limit_of_rows(self, harness: SourceHarness) -> None:
        """The engine's memory is counted in batches: one that is too large ends a worker."""
        with harness.source() as source, planned(source, harness.load(numbered(FEW_ROWS)), ReadLimits(batch_rows=SMALL_BATCH_ROWS)) as plan:
            largest = max((batch.num_rows for split in plan.splits for batch in source.read(split)), default=0)

        require(largest <= SMALL_BATCH_ROWS, f"a batch has {largest} rows where `limits.batch_rows` is {SMALL_BATCH_ROWS}; slice batches")

    def test_a_preview_shows_what_a_plan_will_read(self, harness: SourceHarness) -> None:
        """A person maps columns by the preview: same schema as the plan's, at most the rows that were asked for, and these are the query's."""
        rows = numbered(20)
        query = harness.load(rows)
        with harness.source() as source:
            preview = source.preview(query, 5)
            with planned(source, query) as plan:
                require(preview.schema.equals(plan.schema), "the preview's schema differs from the plan's; make both in one place")
        require(preview.rows.schema.equals(preview.schema), "the preview's rows differ from the preview's schema")
        require(preview.rows.num_rows <= 5, f"a preview of 5 rows has {preview.rows.num_rows}; cut it")
        strangers = [row for row in preview.rows.to_pylist() if row not in rows.to_pylist()]
        require(preview.rows.num_rows and not strangers, "the preview shows no rows, or rows that the query does not give")

    def test_memory_stays_flat(self, harness: SourceHarness) -> None:
        """Forty times the rows need the same memory: a source streams, and a result of a billion rows never fits."""
        small, large = (pa.table({"body": pa.array([MEMORY_CELL] * rows, pa.string())}) for rows in MEMORY_ROWS)
        queries = (harness.load(small), harness.load(large))

        first, second = call_elsewhere(peak_rss_bytes, harness.factory(), queries, SMALL_BATCH_ROWS)

        grown, read = (second - first) >> 20, large.nbytes >> 20
        require(
            second - first <= MEMORY_GROWTH_BYTES,
            f"reading {read} MiB made the process {grown} MiB larger; stream (server-side cursor, pages) instead of fetching all",
        )

    def test_reading_from_an_offset(self, harness: SourceHarness) -> None:
        """With `resumable`, an offset skips exactly so many rows of the same order. Without it, it is refused: a guess would lose or double rows."""
        rows = numbered(FEW_ROWS)
        with harness.source() as source, planned(source, harness.load(rows), ReadLimits(batch_rows=SMALL_BATCH_ROWS)) as plan:
            split = plan.splits[0]
            if not harness.capabilities.resumable:
                refusal(lambda: list(source.read(split, 1)), ConfigError, what="an offset > 0 without `resumable`")
                return
            whole = read_rows(source, (split,))
            for offset in (1, SMALL_BATCH_ROWS, SMALL_BATCH_ROWS + 1, FEW_ROWS):
                rest = [row for batch in source.read(split, offset) for row in batch.to_pylist()]
                require(rest == whole[offset:], "reading from an offset gives other rows; keep an order, or do not declare `resumable`")

    def test_a_value_without_an_arrow_form_is_refused_not_replaced(self, harness: SourceHarness) -> None:
        """An infinite date becomes NULL with its column's name in the extra column, so that the row is a rejection and not a wrong value."""
        odd = harness.unrepresentable()
        if odd is None:
            absent("the harness has no value without an Arrow form")
        with harness.source() as source, planned(source, odd.query) as plan:
            rows = read_rows(source, plan.splits)
            names = plan.schema.names
        require(names[-1:] == [REFUSED_COLUMNS], f"plan the column `{REFUSED_COLUMNS}` (list of text) as the last one")
        refused = [row for row in rows if odd.column in (row[REFUSED_COLUMNS] or ())]
        require(refused, f"list `{odd.column}` in `{REFUSED_COLUMNS}` for the row whose value Arrow can't hold")
        require(all(row[odd.column] is None for row in refused), f"give NULL in `{odd.column}` where it is listed as refused")
