"""Framing: where records of JSON and CSV files begin and end, whatever the file holds, in bounded memory."""

from __future__ import annotations

import csv
import io
import json
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from murmur_beam.decode import decode_csv
from murmur_beam.files import framing
from murmur_beam.files.framing import TooLong, Unframed, frame_csv, frame_json

LIMIT = 1_000


@pytest.fixture(params=[3, 256 * 1024], ids=["small chunks", "large chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in chunks, which may end anywhere in a record."""
    monkeypatch.setattr(framing, "_CHUNK_BYTES", request.param)


def of(data: bytes) -> io.BufferedReader:
    """A file with this content."""
    return io.BufferedReader(io.BytesIO(data))


def json_records(data: bytes, limit: int = LIMIT) -> list[bytes | TooLong]:
    """The records of a JSON file."""
    return list(frame_json(of(data), limit))


def csv_records(data: bytes, limit: int = LIMIT, delimiter: str = ",") -> list[bytes | TooLong]:
    """The records of a CSV file, without the header that is put before each."""
    header = data.removeprefix(b"\xef\xbb\xbf").splitlines()[0] + b"\n"
    records = list(frame_csv(of(data), limit, delimiter))
    assert all(isinstance(record, TooLong) or record.startswith(header) for record in records)
    return [record if isinstance(record, TooLong) else record.removeprefix(header) for record in records]


@pytest.mark.usefixtures("chunks")
class TestJsonLines:
    @pytest.mark.parametrize(
        ("data", "records"),
        [
            (b'{"a":1}\n{"a":2}\n', [b'{"a":1}', b'{"a":2}']),
            (b'{"a":1}\r\n{"a":2}', [b'{"a":1}', b'{"a":2}']),
            (b'\n\r\n \t \n{"a":1}\n\n', [b'{"a":1}']),
            (b'\xef\xbb\xbf{"a":1}\n\xef\xbb\xbf{"a":2}', [b'{"a":1}', b'\xef\xbb\xbf{"a":2}']),
            (b' {"a":1} \n', [b' {"a":1} ']),
            (b"\xff\n\x00\n", [b"\xff", b"\x00"]),
            (b'[1,2]\n{"a":1}\n', [b"[1,2]", b'{"a":1}']),
            (b"[\n1\n]\n", [b"[", b"1", b"]"]),
            (b"", []),
            (b"\xef\xbb\xbf", []),
        ],
    )
    def test_each_line_that_is_not_blank_is_a_record(self, data: bytes, records: list[bytes]) -> None:
        """Byte for byte, without its line end and without the byte order mark of the file."""
        assert json_records(data) == records

    def test_a_line_that_is_too_long_is_skipped(self) -> None:
        """The lines around it are records."""
        data = b'{"a":1}\n' + b"x" * 5_000 + b'\r\n{"a":2}\n' + b"y" * 2_000
        assert json_records(data) == [
            b'{"a":1}',
            TooLong(b"x" * 1_002, 5_000, 2),
            b'{"a":2}',
            TooLong(b"y" * 1_002, 2_000, 4),
        ]

    @pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
    def test_a_line_of_exactly_the_limit_is_a_record(self, end: bytes) -> None:
        """Its line end does not count."""
        assert json_records(b"x" * LIMIT + end) == [b"x" * LIMIT]
        (record,) = json_records(b"x" * (LIMIT + 1) + end)
        assert isinstance(record, TooLong)
        assert record.size == LIMIT + 1


@pytest.mark.usefixtures("chunks")
class TestJsonArrays:
    @pytest.mark.parametrize(
        ("data", "records"),
        [
            (b'[{"a":1},{"a":2}]', [b'{"a":1}', b'{"a":2}']),
            (b'\xef\xbb\xbf \n[\n  {"a": 1},\n  {"a":\n 2}\n]\n', [b'{"a": 1}', b'{"a":\n 2}']),
            (b'[{"a":"x],[\\"{"},{"\\\\":"}"}]', [b'{"a":"x],[\\"{"}', b'{"\\\\":"}"}']),
            (b'[{"a":[1,[2,{"b":3}]]}, 5, "s,", null]', [b'{"a":[1,[2,{"b":3}]]}', b"5", b'"s,"', b"null"]),
            (b"[]", []),
            (b"[ ]\n", []),
            (b'[{"a":1},]', [b'{"a":1}']),
            (b'[{"a":1 2},{"b":1}]', [b'{"a":1 2}', b'{"b":1}']),
        ],
    )
    def test_each_element_is_a_record(self, data: bytes, records: list[bytes]) -> None:
        """As it stands in the file, on one line or on several."""
        assert json_records(data) == records

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (b'[{"a":1},{"a"', "is truncated"),
            (b'[{"a":1}', "is truncated"),
            (b'[{"a":"', "is truncated"),
            (b'[{"a":"\\', "is truncated"),
            (b'[{"a":1}]\n{"a":2}', "other data follows the end"),
            (b"[{}] [", "other data follows the end"),
            (b'[{}] "', "other data follows the end"),
        ],
    )
    def test_an_incomplete_array_is_an_error(self, data: bytes, problem: str) -> None:
        """The elements before the fault are records."""
        with pytest.raises(Unframed, match=problem):
            json_records(data)

    def test_an_element_that_is_too_long_is_skipped(self) -> None:
        """The elements around it are records."""
        data = b'[{"a":1},\n{"b":"' + b"x" * 3_000 + b'"},\n{"c":1}]'
        one, too_long, other = json_records(data)
        assert (one, other) == (b'{"a":1}', b'{"c":1}')
        assert isinstance(too_long, TooLong)
        assert (too_long.size, too_long.line) == (3_009, 2)
        assert too_long.head.startswith(b'{"b":"xx')

    @given(st.lists(st.dictionaries(st.text(), st.text() | st.lists(st.integers())), min_size=1), st.integers(0, 3))
    def test_what_the_json_module_writes_is_read_back(self, rows: list[object], indent: int) -> None:
        """Whatever the texts in it."""
        data = json.dumps(rows, indent=indent or None, ensure_ascii=False).encode("utf-8", "surrogatepass")
        assert [json.loads(record.decode("utf-8", "surrogatepass")) for record in json_records(data, 10**9)] == rows


@pytest.mark.usefixtures("chunks")
class TestCsv:
    @pytest.mark.parametrize(
        ("data", "records"),
        [
            (b"a,b\n1,2\n3,4", [b"1,2", b"3,4"]),
            (b"a,b\r\n1,2\r\n3,4\r\n", [b"1,2", b"3,4"]),
            (b"a,b\r1,2\r3,4\r", [b"1,2", b"3,4"]),
            (b"\xef\xbb\xbfa,b\n1,2\n", [b"1,2"]),
            (b"a,b\n\n \n\t\r\n1,2\n", [b"1,2"]),
            (b'a,b\n"1\n2","x""y"\n3,4\n', [b'"1\n2","x""y"', b"3,4"]),
            (b'a,b\n"1\r\n\r\n2",3\r\n', [b'"1\r\n\r\n2",3']),
            (b'a,b\nx"y,"z\n1"\n', [b'x"y,"z\n1"']),
            (b'a,b\n"",""\n"1",2\n', [b'"",""', b'"1",2']),
            (b'a,b\n"""\n""",2\n', [b'"""\n""",2']),
            (b"a,b\n\x00,\xff\n", [b"\x00,\xff"]),
            (b"a,b\n1\n1,2,3\n", [b"1", b"1,2,3"]),
            (b"a,b\n", []),
            (b"a,b", []),
        ],
    )
    def test_each_record_follows_the_header(self, data: bytes, records: list[bytes]) -> None:
        """Byte for byte, without its line end; line ends in quotes are kept, and blank lines are skipped."""
        assert csv_records(data) == records

    @pytest.mark.parametrize("data", [b"", b"\n\r\n", b"\xef\xbb\xbf"])
    def test_an_empty_file_has_no_records(self, data: bytes) -> None:
        """Nor has it a header."""
        assert list(frame_csv(of(data), LIMIT)) == []

    def test_a_line_of_tabs_is_a_record_where_tabs_delimit(self) -> None:
        """All its fields are empty."""
        assert csv_records(b'a\tb\n\t\n \n1\t"2\n3"\n', delimiter="\t") == [b"\t", b'1\t"2\n3"']

    @pytest.mark.parametrize("delimiter", [";", "|", "\t", "\u00b7"])
    def test_quotes_begin_after_the_delimiter(self, delimiter: str) -> None:
        """After any other character they are text."""
        d = delimiter.encode()
        data = b"a" + d + b'b\n1,"' + d + b'"2\n3"\n4' + d + b"5\n"
        assert csv_records(data, delimiter=delimiter) == [b'1,"' + d + b'"2\n3"', b"4" + d + b"5"]

    @pytest.mark.parametrize(
        ("lines", "bad"),
        [
            ([b'1,"x', b"2,y", b"3,z"], [0]),
            ([b"1,x", b'2,"y', b'3,""', b"4,z"], [1]),
            ([b'1,"x', b"2,y", b'3,"z, z"', b"4,z"], [0]),
            ([b'"1,x', b"2,y", b'"3",z', b"4,z"], [0]),
            ([b'1,"a""', b'2,"b""', b"3,z"], [0, 1]),
            ([b"1,x", b'2,"y'], [1]),
            ([b'"'], [0]),
        ],
    )
    def test_an_unclosed_quote_spoils_only_its_own_line(self, lines: list[bytes], bad: list[int]) -> None:
        """The lines after it are records of their own, so that they are counted."""
        records = csv_records(b"a,b\n" + b"\n".join(lines) + b"\n")
        assert records == lines
        spoilt = [i for i, record in enumerate(records) if not _is_whole(b"a,b\n" + bytes(record))]
        assert spoilt == bad

    def test_a_quoted_field_may_be_as_long_as_a_record(self) -> None:
        """The lines in it are not records, however many they are."""
        field = b'"' + b"x,phantom,1\n" * 80 + b'"'
        assert csv_records(b"a,b\n1,2\n3," + field + b"\n5,6\n") == [b"1,2", b"3," + field, b"5,6"]

    def test_an_unclosed_quote_longer_than_a_record_stops_the_run(self) -> None:
        """It cannot be decided whether the lines in it are records."""
        with pytest.raises(Unframed, match=r"open at the end of line 3 is longer than --max_record_bytes 1,000"):
            csv_records(b'a,b\n1,2\n3,"' + b"x,phantom,1\n" * 100 + b'"\n5,6\n')

    def test_a_line_that_is_too_long_is_skipped(self) -> None:
        """Outside of quotes its end is certain."""
        data = b"a,b\n1,2\n" + b"x" * 3_000 + b",1\r\n3,4\n" + b"y" * 3_000
        one, x, other, y = csv_records(data)
        assert (one, other) == (b"1,2", b"3,4")
        assert isinstance(x, TooLong)
        assert isinstance(y, TooLong)
        assert [(x.size, x.line, x.head[:2]), (y.size, y.line, y.head[:2])] == [(3_002, 3, b"xx"), (3_000, 5, b"yy")]

    @pytest.mark.parametrize("header", [b'a,"b', b'"a"x,b', b"x" * 2_000])
    def test_an_invalid_header_is_an_error(self, header: bytes) -> None:
        """Every record would be read by it."""
        with pytest.raises(Unframed, match="its header is"):
            list(frame_csv(of(header + b"\n1,2\n"), LIMIT))

    @given(
        st.lists(st.lists(st.text(st.characters(exclude_characters="\0")), min_size=2, max_size=2), max_size=5),
        st.sampled_from(["\n", "\r\n", "\r"]),
    )
    def test_what_the_csv_module_writes_is_read_back(self, rows: list[list[str]], end: str) -> None:
        """Each record by itself."""
        out = io.StringIO(newline="")
        csv.writer(out, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["a", "b"], *rows])
        data = out.getvalue().encode("utf-8", "surrogatepass")
        records = list(frame_csv(of(data), 10**9))
        texts = [record.decode("utf-8", "surrogatepass") for record in records if isinstance(record, bytes)]
        assert [list(decode_csv(text).values()) for text in texts] == rows


def _is_whole(record: bytes) -> bool:
    try:
        list(csv.reader(io.StringIO(record.decode()), strict=True))
    except csv.Error:
        return False
    return True


class _Endless(io.RawIOBase):
    """A file that is generated while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        super().__init__()
        self._pieces = pieces

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = next(self._pieces, b"")
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.mark.parametrize("frame", [frame_json, frame_csv])
@pytest.mark.parametrize("start", [b'{"a":1}\nx', b'[{"a":1},\n{"b":"x', b"a,b\n1,2\nx"])
def test_memory_is_bounded_however_long_a_record_is(frame: framing.Frame, start: bytes) -> None:
    """A line of 100 MB is never held in memory."""

    def pieces() -> Iterator[bytes]:
        yield start
        for _ in range(1_600):
            yield b"x" * 65_536

    content = io.BufferedReader(_Endless(pieces()), 65_536)
    tracemalloc.start()
    try:
        n = 0
        try:
            for record in frame(content, 1_000_000):
                n += isinstance(record, TooLong)
        except Unframed:
            n += 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert n == 1
    assert peak < 8_000_000
