"""The commands that show how everything stands: one call each, then a table or JSON."""

import argparse
import sys
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from buttervolume import human
from buttervolume.cli import following
from buttervolume.cli.client import Refused
from buttervolume.cli.printing import (
    Cell,
    Colour,
    as_json,
    line,
    table,
)
from buttervolume.cli.terminal import say
from buttervolume.errors import NoDaemon

Call = Callable[..., dict[str, Any]]

_STATES = {
    "ok": Colour.GOOD,
    "running": Colour.GOOD,
    "new": Colour.PLAIN,
    "paused": Colour.DIM,
    "waiting": Colour.DIM,
    "late": Colour.BAD,
    "failing": Colour.BAD,
}


def status(call: Call, arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """What `status` prints, and whether all is well."""
    answer = call("VolumeDriver.Status", Name=arguments.volume)
    if arguments.json:
        return as_json(answer), answer["Healthy"]
    now = datetime.fromisoformat(answer["Now"])
    lines = list(_problems(answer["Problems"], now))
    lines += _filesystem(answer["Filesystem"])
    if answer["Paused"]:
        lines.append("all jobs are paused")
    if answer["Jobs"]:
        lines += ["", *_jobs(answer["Jobs"], now)]
    lines += _followed(answer.get("Followed", ()), now)
    if arguments.volume is not None:
        lines += _copies(answer["Volumes"], now)
    if answer["Transfers"]:
        lines += ["", line("under way", Colour.TITLE), *_transfers(answer["Transfers"])]
    return lines, answer["Healthy"]


def _problems(problems: Iterable[dict[str, Any]], now: datetime) -> Iterable[str]:
    rows = [
        [
            Cell(problem["Kind"], Colour.BAD),
            problem["Volume"] or "",
            problem["Action"] or "",
            age(problem["Since"], now) if problem["Since"] else "",
            problem["Message"],
        ]
        for problem in problems
    ]
    if not rows:
        yield line("all is well", Colour.GOOD)
        return
    yield line(f"{len(rows)} problem{'s' if len(rows) > 1 else ''}", Colour.BAD)
    yield from table(["PROBLEM", "VOLUME", "JOB", "SINCE", "MESSAGE"], rows)
    yield ""


def _filesystem(space: dict[str, Any] | None) -> Iterable[str]:
    if space is not None:
        metadata = space["MetadataUsed"] / (space["MetadataSize"] or 1)
        share = space["Free"] / (space["Size"] or 1)
        yield (
            f"{human.size(space['Free'])} of {human.size(space['Size'])} free ({share:.0%}), "
            f"{metadata:.0%} of the metadata used"
        )


def _jobs(jobs: Iterable[dict[str, Any]], now: datetime) -> list[str]:
    rows = [
        [
            job["Name"],
            job["Action"],
            Cell(job["State"], _STATES.get(job["State"], Colour.PLAIN)),
            age(job["LastSuccess"], now),
            _next_run(job, now),
            job["Message"] or job["Outcome"],
        ]
        for job in jobs
    ]
    return table(["VOLUME", "JOB", "STATE", "LAST SUCCESS", "NEXT RUN", "MESSAGE"], rows)


def _next_run(job: dict[str, Any], now: datetime) -> str:
    if job["RunningSince"]:
        return f"since {age(job['RunningSince'], now).removesuffix(' ago')}"
    if job["State"] in ("paused", "waiting"):
        return "-"
    return until(job["NextRun"] or now.isoformat(), now)


def _copies(volumes: Iterable[dict[str, Any]], now: datetime) -> Iterable[str]:
    rows = [
        [volume["Name"], copy["Host"], copy["Snapshot"], age(copy["Taken"], now)]
        for volume in volumes
        for copy in volume["Hosts"]
    ]
    if rows:
        yield ""
        yield from table(["VOLUME", "HOST", "NEWEST COPY", "TAKEN"], rows)


def _followed(volumes: Iterable[dict[str, Any]], now: datetime) -> Iterable[str]:
    rows = [
        [volume["Name"], *following.member_row(member, volume["Owner"], now)]
        for volume in volumes
        for member in volume["Members"]
    ]
    if rows:
        yield ""
        yield from table(["VOLUME", *following.COLUMNS], rows)


def _transfers(transfers: Iterable[dict[str, Any]]) -> list[str]:
    rows = [
        [
            transfer["Operation"],
            transfer["Snapshot"] or transfer["Volume"],
            transfer["Host"],
            transfer["Phase"],
            human.size(transfer["Bytes"]),
            f"{human.size(transfer['BytesPerSecond'])}/s",
        ]
        for transfer in transfers
    ]
    return table(["OPERATION", "WHAT", "HOST", "PHASE", "MOVED", "SPEED"], rows)


def volumes(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `volumes` prints."""
    answer = call("VolumeDriver.Volume.List")
    if arguments.json:
        return as_json(answer)
    now = datetime.fromisoformat(answer["Now"])
    rows: list[list[str | Cell]] = [
        [
            Cell(volume["Name"], Colour.BAD if volume["Problems"] else Colour.PLAIN),
            age(volume["CreatedAt"], now) if "CreatedAt" in volume else "",
            str(volume["InUse"] or ""),
            str(volume["Snapshots"]),
            age(volume["LastTaken"], now) if volume["LastTaken"] else "",
            ", ".join(copy["Host"] for copy in volume["Hosts"]),
            str(volume["Jobs"] or ""),
        ]
        for volume in answer["Volumes"]
    ]
    return table(["VOLUME", "CREATED", "IN USE", "SNAPSHOTS", "NEWEST", "HOSTS", "JOBS"], rows)


def usage(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `usage` prints; the volumes are measured one by one, so that one sees how far it is."""
    if arguments.volume is not None:
        answer = call("VolumeDriver.Usage", Name=arguments.volume)
    else:
        answer = _usage_of_all(call)
    if arguments.json:
        return as_json(answer)
    rows = [
        [
            each["Name"],
            human.size(each["Bytes"]),
            human.size(each["Exclusive"]),
            human.size(each["Snapshots"]),
        ]
        for each in sorted(answer["Usage"], key=lambda each: -each["Bytes"])
    ]
    return table(["VOLUME", "USED", "ONLY HERE", "FREED WITHOUT SNAPSHOTS"], rows)


def _usage_of_all(call: Call) -> dict[str, Any]:
    """What a call about all volumes would answer."""
    names = [volume["Name"] for volume in call("VolumeDriver.Volume.List")["Volumes"]]
    measured: list[dict[str, Any]] = []
    failures: list[Refused] = []
    for name in _with_progress(names):
        try:
            measured += call("VolumeDriver.Usage", Name=name)["Usage"]
        except Refused as refusal:
            if refusal.code in ("Unreadable", "OperationFailed"):
                failures.append(refusal)
            elif refusal.code != "NoSuchVolume":  # else it was removed meanwhile
                raise
    if not failures:
        return {"Usage": measured}
    if not measured:
        raise failures[0]
    warning = "; ".join(map(str, failures))
    say(f"warning: {warning}")
    return {"Usage": measured, "Warning": warning}


def _with_progress(names: list[str]) -> Iterable[str]:
    """The same names, with a bar on a terminal that shows how many have been dealt with."""
    if not sys.stderr.isatty():
        return names
    from tqdm import tqdm

    return tqdm(names, unit="volume", leave=False)


_LEVELS = {"good": Colour.GOOD, "note": Colour.PLAIN, "bad": Colour.BAD}


def doctor(call: Call, arguments: argparse.Namespace) -> tuple[list[str], bool]:
    """What `doctor` prints, and whether nothing is bad."""
    try:
        answer = call("VolumeDriver.Doctor", Hosts=arguments.host or None)
        findings: list[dict[str, Any]] = answer["Findings"]
    except NoDaemon as error:
        advice = "start it: systemctl start buttervolume; its log says why it ended"
        findings = [_finding("daemon", "bad", error.reason, advice)]
    if not arguments.host:
        from buttervolume.report.doctor import docker
        from buttervolume.system import command

        for each in docker(command.run, _names_of_volumes(call)):
            findings.append(_finding(each.check, each.level, each.message, each.advice))
    is_well = all(finding["Level"] != "bad" for finding in findings)
    if arguments.json:
        return as_json({"Findings": findings}), is_well
    rows: list[list[str | Cell]] = [
        [
            Cell(finding["Level"], _LEVELS.get(finding["Level"], Colour.PLAIN)),
            f"{finding['Host'] or ''} {finding['Check']}".strip(),
            ": ".join(filter(None, (finding["Message"].rstrip("."), finding["Advice"]))),
        ]
        for finding in findings
    ]
    return table(["", "CHECK", "FOUND"], rows), is_well


def _names_of_volumes(call: Call) -> list[str]:
    """The volumes of this host; none where the daemon does not tell."""
    try:
        return [volume["Name"] for volume in call("VolumeDriver.List")["Volumes"]]
    except (NoDaemon, Refused):
        return []


def _finding(check: str, level: str, message: str, advice: str) -> dict[str, Any]:
    return {"Host": None, "Check": check, "Level": level, "Message": message, "Advice": advice}


def age(moment: str | None, now: datetime) -> str:
    """How long ago a moment of an answer was."""
    return human.age(None if moment is None else datetime.fromisoformat(moment), now)


def until(moment: str, now: datetime) -> str:
    """When a moment of an answer is to come."""
    return human.until(datetime.fromisoformat(moment), now)


def snapshots(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `snapshots` prints: one a line, or a table."""
    volume = arguments.volume
    more = {"Details": True} if arguments.long or arguments.json else {}
    answer = call("VolumeDriver.Snapshot.List", Name=volume, **more)
    is_unknown = not answer["Snapshots"] and volume is not None and not _exists(call, volume)
    if is_unknown:
        say(f"{volume}: there is neither such a volume nor a snapshot of it")
    if not more or (is_unknown and not arguments.json):
        return list(answer["Snapshots"])
    if arguments.json:
        return as_json(answer)
    now = datetime.fromisoformat(answer["Now"])
    rows = [
        [
            each["Name"],
            age(each["Taken"], now) if each["Taken"] else "",
            ", ".join(each["Hosts"]),
            _kept_until(each, now),
            each["Reason"] or "",
        ]
        for each in answer["Details"]
    ]
    return table(["SNAPSHOT", "TAKEN", "HOSTS", "KEPT", "WHY"], rows)


def _exists(call: Call, volume: str) -> bool:
    try:
        call("VolumeDriver.Path", Name=volume)
    except Refused as refusal:
        return refusal.code not in ("NoSuchVolume", None)
    return True


def _kept_until(snapshot: dict[str, Any], now: datetime) -> str | Cell:
    if snapshot["Purged"]:
        return Cell("until the next purge", Colour.BAD)
    if snapshot["KeptUntil"] is None:
        return ""
    return f"for {until(snapshot['KeptUntil'], now).removeprefix('in ')}"


def log(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `log` prints: what was done last, the newest at the end."""
    answer = call(
        "VolumeDriver.Log",
        Name=arguments.volume,
        Limit=arguments.number,
        Since=arguments.since,
        Failed=arguments.failed,
    )
    if arguments.json:
        return as_json(answer)
    rows = [_run(run) for run in answer["Log"]]
    return table(["WHEN", "TOOK", "WHAT", "VOLUME", "BY", "MOVED", "RESULT"], rows) if rows else []


def _run(run: dict[str, Any]) -> list[str | Cell]:
    started = datetime.fromisoformat(run["Started"]).astimezone()
    failed = run["Message"]
    return [
        started.strftime("%Y-%m-%d %H:%M:%S"),
        f"{run['Seconds']:.1f} s",
        run["Operation"],
        run["Volume"],
        run["By"],
        "" if run["Bytes"] is None else human.size(run["Bytes"]),
        Cell(failed, Colour.BAD) if failed else run["Outcome"] or run["Snapshot"] or "done",
    ]


def removed(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `removed` prints."""
    answer = call("VolumeDriver.Volume.Removed")
    if arguments.json:
        return as_json(answer)
    now = datetime.now().astimezone()
    rows = [
        [
            f"{each['Name']}@{each['Date']}",
            f"deleted {until(each['Until'], now)}",
            human.size(each.get("Size")),
        ]
        for each in answer["Removed"]
    ]
    return table(["VOLUME", "UNTIL", "SIZE"], rows) if rows else []


def scheduled(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `scheduled` prints: one job a line."""
    answer = call("VolumeDriver.Schedule.List")
    if arguments.json:
        return as_json(answer)
    if answer.get("Paused"):
        say("all jobs are paused")
    for row in answer.get("Unreadable", []):
        say(f"warning: nobody can read this row: {row['Line']} ({row['Error']})")
    return [
        f"{job['Action']} {job['Timer']} {job['Name']}"
        + (" (paused)" if job["Active"] == "False" else "")
        for job in answer["Schedule"]
    ]


def transfers(call: Call, arguments: argparse.Namespace) -> list[str]:
    """What `transfers` prints: plainly, one a line."""
    answer = call("VolumeDriver.Transfers")
    if arguments.json:
        return as_json(answer)
    return [
        " ".join(
            [
                transfer["Operation"],
                transfer["Snapshot"] or transfer["Volume"],
                transfer["Host"],
                str(transfer["Bytes"]),
                f"{transfer['Seconds']:.0f}",
            ]
        )
        for transfer in answer["Transfers"]
    ]
