"""Metrics of several pools on one page: each series gets the name of its pool as a label."""

import re
from collections.abc import Mapping

_COMMENT = re.compile(rb"# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) ")
_SAMPLE = re.compile(rb"([a-zA-Z_:][a-zA-Z0-9_:]*)(\{)?")


def join_pages(pages: Mapping[str, bytes]) -> bytes:
    """One page in Prometheus' text format of one for each pool, by its name.

    A family is one block on the page, so those of all pools are brought together. Names hold no quotes, backslashes
    or line breaks.
    """
    comments: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for pool, page in pages.items():
        label = b'pool="' + pool.encode() + b'"'
        family = b""
        for line in page.splitlines():
            comment = _COMMENT.match(line)
            if comment is not None:
                family = comment[2]
                known = comments.setdefault(family, [])
                if line not in known and len(known) < 2:
                    known.append(line)
            elif line and not line.startswith(b"#"):
                samples.setdefault(family, []).append(_labelled(line, label))
    blocks = [[*lines, *samples.get(family, [])] for family, lines in comments.items()]
    return b"".join(line + b"\n" for block in blocks for line in block)


def _labelled(line: bytes, label: bytes) -> bytes:
    sample = _SAMPLE.match(line)
    if sample is None:
        return line
    name, has_labels = sample[1], sample[2]
    rest = line[sample.end() :]
    return name + b"{" + label + (b"," + rest if has_labels else b"}" + rest)
