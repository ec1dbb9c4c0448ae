"""A directory of cases as one file of lines in hexadecimal digits, and back."""

import gzip
import pathlib
import sys

verb, packed, folder = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
if verb == "pack":
    cases = sorted(path.read_bytes() for path in folder.iterdir())
    lines = "".join(case.hex() + "\n" for case in cases if case)
    # The same bytes whenever it is written.
    packed.write_bytes(gzip.compress(lines.encode(), 9, mtime=0))
elif packed.exists():
    for number, line in enumerate(gzip.decompress(packed.read_bytes()).decode().split()):
        (folder / f"kept_{number:05}").write_bytes(bytes.fromhex(line))
