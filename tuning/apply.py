"""Makes the settings of a plan, keeps what was there before, and puts it back.

First what is there now is written down, then it is changed, one thing after the other. A crash in between leaves a
backup that names more than was changed, never less; undoing a change that was not made finds nothing to do.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path

import psutil

from tuning import emit, host
from tuning.emit import MOORAGE, Service
from tuning.facts import Facts
from tuning.finding import Kind, Scope, Setting, Verdict
from tuning.plan import Step, refusal, same


class Status(StrEnum):
    """What became of one change."""

    SET = "set"
    ALREADY = "already so"
    LATER = "not now"
    REFUSED = "refused"
    FAILED = "failed"
    RESTORED = "restored"
    THEIRS = "left alone"


@dataclass(frozen=True, slots=True)
class Result:
    """One change and what became of it."""

    what: str
    status: Status
    detail: str

    @property
    def is_fault(self) -> bool:
        """Whether the host is not as it was asked to be."""
        return self.status in (Status.REFUSED, Status.FAILED, Status.THEIRS)


@dataclass(frozen=True, slots=True)
class Roots:
    """Where things are; tests and image builds have their own."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    files: Path = Path("/")  # etc/ is below it

    @property
    def backups(self) -> Path:
        """Where the backups are kept."""
        return self.files / "var/lib/moorage/tuning"


HERE = Roots()
EARLIER = "an earlier apply set it, and it is so still"


class NoBackup(Exception):
    """There is nothing to undo."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to write, with what is there before. `before` None: there is no such file yet."""

    kind: str  # a Kind, or "file"
    key: str
    path: str  # empty for a limit of a process
    before: str | None
    after: str
    pid: int | None = None
    started: float | None = None  # when process `pid` began: its number may be another's by the time of an undo

    @property
    def what(self) -> str:
        """Its name in a report."""
        return self.path if self.kind == "file" else self.key


def apply(
    steps: Sequence[Step],
    facts: Facts,
    roots: Roots = HERE,
    *,
    persist: Sequence[Step] = (),
    pid: int | None = None,
    service: Service = MOORAGE,
) -> list[Result]:
    """Make `steps` now; with `pid` also for that running process.

    persist: the whole plan, to write `steps` to files that last, beside what those files say already.

    Never raises for a setting that cannot be made: its result says why, and the others are made all the same.
    Raises: OSError when the backup cannot be written, ValueError when an earlier one cannot be read; then nothing has
    been changed.
    """
    with _alone(roots.backups):
        results, changes = _prepare(steps, facts, roots, pid)
        if persist:
            changes += _file_changes(_lasting(steps, persist, roots, service), roots, service)
        if not changes:
            return results
        backup = _write_backup(roots.backups, changes)
        made = []
        for change in changes:
            results.append(_make(change, change.after))
            made += _made(change)
        _rewrite_backup(backup, made)
        return results


def undo(facts: Facts, roots: Roots = HERE) -> list[Result]:
    """Put back what the latest `apply` changed, last change first. What could not be put back stays in the backup.

    What somebody else has set since is theirs, and goes: kept, it would stand before the backups of earlier ones.
    Raises: NoBackup; ValueError naming the backup file that cannot be read.
    """
    with _alone(roots.backups):
        backup = latest_backup(roots.backups)
        if backup is None:
            raise NoBackup(f"no backup in {roots.backups}: nothing was applied, or it was undone already")
        changes = _read_backup(backup)
        results: list[Result] = []
        left: list[Change] = []
        for change in reversed(changes):
            result = _put_back(change, facts)
            results.append(result)
            if result.is_fault and result.status is not Status.THEIRS:
                left.insert(0, change)
        _rewrite_backup(backup, left)
        return results


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One apply or undo at a time: two would write one backup, and take each other's values for those before."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # without a backup nothing is changed, and whoever writes it says why not
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def latest_backup(folder: Path) -> Path | None:
    """The newest backup in `folder`, or None."""
    return max(_backups(folder), default=None, key=_number)


def _backups(folder: Path) -> list[Path]:
    """The oldest first."""
    return sorted(folder.glob("backup-*.json"), key=_number)


def _number(backup: Path) -> int:
    return int(backup.stem.split("-")[1])


def _prepare(steps: Sequence[Step], facts: Facts, roots: Roots, pid: int | None) -> tuple[list[Result], list[Change]]:
    """What can be changed now, and results for what cannot or need not be."""
    results, changes = [], []
    for step in steps:
        setting = step.setting
        try:
            change = _live_change(setting, roots, pid)
        except (OSError, psutil.Error) as fault:
            hint = "; it is the host's to set" if step.scope is Scope.HOST and facts.container else ""
            results.append(Result(setting.key, Status.FAILED, f"cannot be read: {_fault(fault)}{hint}"))
            continue
        if change is None:
            results.append(Result(setting.key, Status.LATER, f"when the service starts again with {setting.command()}"))
        elif change.before is not None and same(change.key, change.before, change.after):
            results.append(Result(setting.key, Status.ALREADY, change.after))
        elif why := refusal(replace(setting, value=change.after), change.before, facts):
            results.append(Result(setting.key, Status.REFUSED, why))
        else:
            changes.append(change)
    return results, changes


def _live_change(setting: Setting, roots: Roots, pid: int | None) -> Change | None:
    """The change that takes effect at once; None where only a restart of the service does."""
    match setting.kind:
        case Kind.SYSCTL:
            path = roots.proc / "sys" / setting.key.replace(".", "/")
            return Change(setting.kind, setting.key, str(path), " ".join(path.read_text().split()), setting.value)
        case Kind.SYSFS:
            path = roots.sys / setting.key
            return Change(setting.kind, setting.key, str(path), _chosen(path.read_text()), setting.value)
        case Kind.NOFILE if pid is not None:
            process = psutil.Process(pid)
            before = " ".join(map(str, process.rlimit(psutil.RLIMIT_NOFILE)))
            after = f"{setting.value} {setting.value}"
            return Change(setting.kind, setting.key, "", before, after, pid, process.create_time())
    return None


def _chosen(text: str) -> str:
    """The value of a file in /sys: the word in brackets where it lists the choices."""
    return text.partition("[")[2].partition("]")[0] if "[" in text else text.strip()


def _lasting(steps: Sequence[Step], whole: Sequence[Step], roots: Roots, service: Service) -> list[Step]:
    """`steps`, and what an earlier apply made or wrote: it is right now because of that, and `whole` may not name it."""
    paths = [roots.files / path for path in emit.files(whole, service)]
    text = "\n".join(path.read_text() for path in paths if path.exists())
    written = {word.lstrip("-") for line in text.splitlines() for word in re.split(r"[\s=]+", line)[:3]}
    made = {change.key: change for backup in _backups(roots.backups) for change in _read_backup(backup)}
    asked = {step.setting.key: step for step in steps}
    planned = {step.setting.key for step in whole}
    return [
        _no_less(asked.get(step.setting.key, step), text)
        for step in whole
        if step.setting.key in asked or {step.setting.key, f"/sys/{step.setting.key}"} & (written | made.keys())
    ] + [
        Step(Setting(Kind(change.kind), key, change.after), Scope.HOST, Verdict.OK, change.after, EARLIER, "moorage")
        for key, change in made.items()
        if change.kind in (Kind.SYSCTL, Kind.SYSFS) and key not in planned and _made(change) == [change]
    ]


def _no_less(step: Step, text: str) -> Step:
    """`step`, with the LimitNOFILE= that `text` has where that is more."""
    if step.setting.kind is not Kind.NOFILE:
        return step
    value = max(map(int, [step.setting.value, *re.findall(r"^LimitNOFILE=(\d+)$", text, re.MULTILINE)]))
    return replace(step, setting=replace(step.setting, value=str(value)))


def _file_changes(steps: Sequence[Step], roots: Roots, service: Service) -> list[Change]:
    changes = []
    for relative, text in emit.files(steps, service).items():
        path = roots.files / relative
        before = path.read_text() if path.exists() else None
        if before != text:
            changes.append(Change("file", relative, str(path), before, text))
    return changes


def _make(change: Change, value: str) -> Result:
    """Write `value`, and read it back: the kernel clips some values without a word."""
    try:
        if change.kind == "file":
            _write_file(Path(change.path), value)
        elif change.kind == Kind.NOFILE:
            soft, hard = map(int, value.split())
            psutil.Process(change.pid).rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        else:
            Path(change.path).write_text(f"{value}\n")  # the newline, as writing nothing at all changes nothing
            if not same(change.key, now := _now(change) or "", value):
                return Result(change.what, Status.FAILED, f"wrote {value}, the kernel made it {now}")
    except (OSError, psutil.Error) as fault:
        return Result(change.what, Status.FAILED, f"stays {_short(change.before)}: {_fault(fault)}")
    return Result(change.what, Status.SET, f"{_short(change.before)} -> {_short(value)}")


def _made(change: Change) -> list[Change]:
    """`change` with what is there now as its `after`, set or clipped; nothing where all is as before."""
    try:
        now = _now(change)
    except (OSError, psutil.Error):
        return [change]
    return [] if now in (None, change.before) else [replace(change, after=now)]


def _now(change: Change) -> str | None:
    """What is there at this moment, in the words of `before` and `after`."""
    if change.kind == Kind.NOFILE:
        process = psutil.Process(change.pid)
        if process.create_time() != change.started:
            raise psutil.NoSuchProcess(process.pid)  # its number is another's by now
        return " ".join(map(str, process.rlimit(psutil.RLIMIT_NOFILE)))
    path = Path(change.path)
    if change.kind == "file":
        return path.read_text() if path.exists() else None
    return _chosen(path.read_text()) if change.kind == Kind.SYSFS else " ".join(path.read_text().split())


def _put_back(change: Change, facts: Facts) -> Result:
    try:
        now = _now(change)
    except psutil.NoSuchProcess:
        return Result(change.what, Status.RESTORED, "the process is gone")
    except (OSError, psutil.Error) as fault:
        return Result(change.what, Status.FAILED, _fault(fault))
    if now == change.before:
        return Result(change.what, Status.ALREADY, _short(now))
    if now != change.after:
        return Result(change.what, Status.THEIRS, f"somebody set it to {_short(now)} since; left as it is")
    if change.kind == "file":
        return _put_back_file(change)
    assert change.before is not None, "only a file can have been absent"
    if change.pid is not None:
        facts = replace(facts, process=host.process(change.pid))
    if why := refusal(Setting(Kind(change.kind), change.key, change.before), now, facts, undo=True):
        return Result(change.what, Status.REFUSED, why)
    result = _make(change, change.before)
    return Result(result.what, Status.RESTORED, f"{now} -> {change.before}") if result.status is Status.SET else result


def _put_back_file(change: Change) -> Result:
    path = Path(change.path)
    try:
        if change.before is None:
            path.unlink()
            return Result(change.what, Status.RESTORED, "removed")
        _write_file(path, change.before)
    except OSError as fault:
        return Result(change.what, Status.FAILED, _fault(fault))
    return Result(change.what, Status.RESTORED, "as before")


def _write_backup(folder: Path, changes: Sequence[Change]) -> Path:
    """A new backup, numbered: the clock may stand still or go back between two of them."""
    latest = latest_backup(folder)
    number = 1 + (_number(latest) if latest else 0)
    path = folder / f"backup-{number}.json"
    _write_file(path, _as_json(changes))
    return path


def _rewrite_backup(path: Path, changes: Sequence[Change]) -> None:
    """`changes` are what an undo has to put back; none: the backup has served."""
    with suppress(OSError):  # a full disk: it names more than there is to undo, as after a crash
        if changes:
            _write_file(path, _as_json(changes))
        else:
            path.unlink(missing_ok=True)


def _as_json(changes: Sequence[Change]) -> str:
    return json.dumps([asdict(change) for change in changes], indent=1)


def _read_backup(path: Path) -> list[Change]:
    try:
        return [Change(**entry) for entry in json.loads(path.read_text())]
    except (TypeError, ValueError) as fault:
        raise ValueError(f"{path}: {fault}") from None


def _write_file(path: Path, text: str) -> None:
    """Whole or not at all, and on the disk before it is answered for. A file that exists keeps its mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as new:
        try:
            new.write(text)
            new.flush()
            os.fchmod(new.fileno(), mode)
            os.fsync(new.fileno())
            os.replace(new.name, path)
        except OSError:
            os.unlink(new.name)
            raise


def _fault(fault: Exception) -> str:
    if isinstance(fault, psutil.AccessDenied):  # psutil keeps the errno to itself
        return "[Errno 1] Operation not permitted; a hard limit is raised with CAP_SYS_RESOURCE, up to fs.nr_open"
    if isinstance(fault, psutil.NoSuchProcess):
        return "the process is gone"
    return f"[Errno {fault.errno}] {fault.strerror}" if isinstance(fault, OSError) and fault.errno else str(fault)


def _short(text: str | None) -> str:
    """A value in a report; of a file only how long it is."""
    if text is None:
        return "nothing"
    return f"a file of {len(text)} bytes" if "\n" in text else text


def summary(results: Sequence[Result]) -> Iterator[str]:
    """One line a change, then what that makes in all."""
    for result in results:
        yield f"{result.status.value:<10}  {result.what}: {result.detail}"
    faults = sum(result.is_fault for result in results)
    if faults:
        yield f"{faults} of {len(results)} not made; the others are"
