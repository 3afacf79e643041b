"""What is kept on disk: JSON and text (`files`), rows (`rows`), whole sets (`datasets`)."""

from undertow.storage.datasets import (
    Division,
    RowSet,
    SourcedRow,
    keep_stdin,
    open_rows,
    take_rows,
    write_split,
)
from undertow.storage.files import (
    DRAFT_PREFIX,
    append_jsonl,
    file_sha256,
    read_json,
    read_jsonl,
    replacing,
    write_json,
    write_text,
    writing,
)
from undertow.storage.rows import (
    Layout,
    check_rows_name,
    read_rows,
    read_verdicts,
    write_rows,
)

__all__ = [
    "DRAFT_PREFIX",
    "Division",
    "Layout",
    "RowSet",
    "SourcedRow",
    "append_jsonl",
    "check_rows_name",
    "file_sha256",
    "keep_stdin",
    "open_rows",
    "read_json",
    "read_jsonl",
    "read_rows",
    "read_verdicts",
    "replacing",
    "take_rows",
    "write_json",
    "write_rows",
    "write_split",
    "write_text",
    "writing",
]
