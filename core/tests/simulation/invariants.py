"""What must always hold, read from the record of every change; and what must hold once all is quiet."""

from __future__ import annotations

from collections import Counter, defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

from wsync_engine.index.layout import key
from wsync_engine.model.run import OPEN_STATES, TERMINAL_STATES

from .reference import Declared, times_between
from .stores import Effect

if TYPE_CHECKING:
    from .actors import Call
    from .world import World

OPEN = {str(state) for state in OPEN_STATES}
TERMINAL = {str(state) for state in TERMINAL_STATES}
LATEST_DECISION = timedelta(seconds=11)
SPOILED = "Mars/Olympus"
LONGEST_JITTER = timedelta(seconds=3)
UNSEEN = timedelta(seconds=10)
Row = dict[str, Any]


class Watch:
    """Reads the record as it grows; keeps what it has read of each row."""

    def __init__(self, world: World) -> None:
        self.violations: list[str] = []
        self.run_count = 0
        self.events: Counter[str] = Counter()
        self._world = world
        self._seq = 0
        self._runs: dict[str, Row] = {}
        self._schedules: dict[str, Row] = {}
        self._former_schedules: dict[str, Row] = {}
        self._clocks: dict[str, Row] = {}
        self._last_nominal: dict[str, str] = {}
        self._counted: dict[str, int] = defaultdict(int)
        self._settled: set[str] = set()
        self._revs: dict[bytes, int] = {}
        self._incarnation = b""
        world.watch = self
        world.after_effect = self.after_effect

    def violate(self, invariant: str, what: str) -> None:
        text = f"{invariant}: {what} (at {self._world.clock.now_s:.3f} s)"
        if len(self.violations) < 5:
            self.violations.append(text)
            self._world.trace("VIOLATION", text)

    # -- always

    def after_effect(self, effect: Effect) -> None:
        """What is cheap enough to be looked at after each call."""
        if effect.name in {"upsert_due", "commit_fire"}:
            self._check_revs()
        elif (effect.name == "dispatch" and len(effect.result) > 2) or (effect.name in {"release", "expire", "hold"} and effect.result):
            self._check_holds(effect)

    def _check_revs(self) -> None:
        """I3: within an incarnation no rev goes down; whoever is gone may come back."""
        client = self._world.ground.redis
        pipeline = client.pipeline(transaction=False)
        pipeline.get(key(0, "inc"))
        pipeline.hgetall(key(0, "rev"))
        incarnation, found = pipeline.execute()
        incarnation = (incarnation or b"").rpartition(b":")[0]
        if incarnation != self._incarnation:
            self._incarnation, self._revs = incarnation, {}
        revs = {member: int(rev) for member, rev in found.items()}
        for member, rev in revs.items():
            if rev < self._revs.get(member, 0):
                self.violate("I3", f"the rev of {UUID(bytes=member[-16:])} went from {self._revs[member]} to {rev}")
        self._revs = revs

    def _check_holds(self, effect: Effect) -> None:
        """I10: what is used is what is held, and a dispatch takes no more than there is."""
        pipeline = self._world.ground.redis.pipeline(transaction=False)
        for name in ("held", "used", "cap"):
            pipeline.hgetall(key(0, name))
        held, used, caps = pipeline.execute()
        counts: dict[str, int] = defaultdict(int)
        for hold in held.values():
            member = hold.decode()
            for resource in (f"T{member[3:35]}", member[83:116], member[117:150], member[151:184]):
                counts[resource] += 1
        if {name.decode(): int(count) for name, count in used.items()} != counts:
            self.violate("I10", f"after {effect.name} it is used {used} but held {dict(counts)}")
        if effect.name == "dispatch" and len(effect.result) > 2:
            for member in effect.result[2:]:
                tenant, credential = f"T{member.decode()[3:35]}", member.decode()[151:184]
                for resource, name in ((tenant, tenant), (credential, f"B{credential[1:]}")):
                    cap = caps.get(name.encode())
                    if cap is not None and counts[resource] > int(cap.split(b"|")[0]):
                        self.violate("I10", f"{counts[resource]} runs hold {resource}, whose cap is {cap!r}")

    def read(self) -> None:
        """What was committed since the last time; called while no transaction is open, so that nothing appears before what was read."""
        observer = self._world.ground.observer
        rows = observer.execute(
            "SELECT seq, tx, at, kind, old, new FROM simulation.log WHERE seq > %s ORDER BY seq", [self._seq]
        ).fetchall()
        if not rows:
            return
        self._seq = rows[-1]["seq"]
        began: dict[
            int, datetime
        ] = {}  # a process may stand still between two writes of a transaction: what came due meanwhile is not its affair
        for row in rows:
            row["began_at"] = began.setdefault(row["tx"], row["at"])
        told = {(row["tx"], row["new"]["run_id"]) for row in rows if row["kind"].startswith("run_event")}
        for row in rows:
            if row["kind"] == "run":
                self._read_run(row, told)
            elif row["kind"] == "schedule":
                self._schedules[row["new"]["schedule_id"]] = row["new"]
                self._former_schedules[row["new"]["schedule_id"]] = row["old"]
            elif row["kind"] == "schedule_clock":
                self._read_clock(row)
            elif row["kind"] == "ack":
                self._read_ack(row["new"])
            else:
                self._read_event(row["new"])
        self._check_keys()

    def _read_run(self, row: Row, told: set[tuple[int, str]]) -> None:
        old, new = row["old"], row["new"]
        run_id = new["run_id"]
        if old is None:
            self.run_count += 1
            self._check_scheduled(new)
        else:
            if new["epoch"] < old["epoch"]:
                self.violate("I7", f"the epoch of run {run_id} went from {old['epoch']} to {new['epoch']}")
            if old["state"] in TERMINAL and new["state"] != old["state"]:
                self.violate("I8", f"run {run_id} was {old['state']} and became {new['state']}")
            if new["state"] == "running" and old["state"] == "queued":
                self._check_start(new, row["at"])
        is_moved = old is None or old["state"] != new["state"]
        if is_moved and (row["tx"], run_id) not in told:
            self.violate("I20", f"run {run_id} became {new['state']} without an event")
        self._runs[run_id] = new

    def _check_scheduled(self, new: Row) -> None:
        """I1 and I5, and that the time is one that the schedule asks for."""
        if new["trigger"] != "schedule":
            return
        schedule_id = new["schedule_id"]
        nominal_at = datetime.fromisoformat(new["nominal_at"])
        last = self._last_nominal.get(schedule_id)
        if last is not None and nominal_at <= datetime.fromisoformat(last):
            self.violate("I1", f"schedule {schedule_id} fired {nominal_at} after {last}")
        self._last_nominal[schedule_id] = new["nominal_at"]
        schedule = self._schedules[schedule_id]
        if schedule["paused"] or schedule["deleted_at"]:
            self.violate("I5", f"schedule {schedule_id} fired {nominal_at} while it was paused or deleted")
        if nominal_at not in times_between(Declared.of(schedule), nominal_at, nominal_at + timedelta(microseconds=1)):
            self.violate("I2", f"schedule {schedule_id} fired {nominal_at}, which it does not ask for")

    def _check_start(self, run: Row, at: datetime) -> None:
        """I9: what another holder, or another run of the key, sent, has ended when this one may send."""
        now_ms = self._world.ms_of(at)
        for call in self._world.calls:
            is_other = call.start_ms < now_ms < call.end_ms and (str(call.run_id), call.epoch) != (run["run_id"], run["epoch"])
            is_same_run = str(call.run_id) == run["run_id"]
            if is_other and (is_same_run or (run["exclusive"] and str(call.overlap_key) == run["overlap_key"] and call.is_exclusive)):
                self.violate("I9", f"run {run['run_id']} started epoch {run['epoch']} while epoch {call.epoch} of run {call.run_id} called")

    def check_call(self, call: Call) -> None:
        """I9 once more, where it matters: nobody else calls for the run, or for its key."""
        for other in self._world.calls:
            is_same = other.run_id == call.run_id or (other.is_exclusive and call.is_exclusive and other.overlap_key == call.overlap_key)
            if is_same and other.end_ms > call.start_ms:
                self.violate("I9", f"epoch {call.epoch} of run {call.run_id} calls while epoch {other.epoch} of run {other.run_id} does")

    def _read_clock(self, row: Row) -> None:
        """I2, as it goes: between two changes of the row, each time that was passed has one decision."""
        old, new = row["old"], row["new"]
        schedule_id = new["schedule_id"]
        self._clocks[schedule_id] = new
        if old is None:
            return
        if new["rev"] < old["rev"]:
            self.violate("I3", f"the row's rev of {schedule_id} went down")
        decided = _decisions(new) - _decisions(old)
        if decided == 0:
            self._check_change(old, new, row["at"], row["began_at"])
            return
        if old["next_nominal_at"] is None:
            self.violate("I2", f"schedule {schedule_id} decided {decided} times although none was to come")
            return
        is_given_up = new["rev"] == old["rev"]  # by a change, which counts what the former declaration asked for
        declared = Declared.of((self._former_schedules if is_given_up else self._schedules)[schedule_id])
        first = datetime.fromisoformat(old["next_nominal_at"])
        last = datetime.fromisoformat(new["last_nominal_at"])
        expected = times_between(declared, first, last + timedelta(microseconds=1))
        if len(expected) != decided:
            self.violate("I2", f"schedule {schedule_id} made {decided} decisions for the {len(expected)} times {first} .. {last}")
        if is_given_up:
            left = times_between(declared, last + timedelta(microseconds=1), row["began_at"] - LONGEST_JITTER)
            if left:
                self.violate("I2", f"a change of schedule {schedule_id} did not count {left[0]}")
        elif new["next_nominal_at"] is not None:
            following = datetime.fromisoformat(new["next_nominal_at"])
            between = times_between(declared, last + timedelta(microseconds=1), following)
            if between:
                self.violate("I2", f"schedule {schedule_id} goes on with {following} and leaves out {between[0]}")

    def _check_change(self, old: Row, new: Row, at: datetime, began_at: datetime) -> None:
        """A change of a schedule goes on with a time that it asks for, passes over none that is still to come, and loses none that was due."""
        if new["next_nominal_at"] is None:
            self._check_end(old, new, began_at)
            return
        declared = Declared.of(self._schedules[new["schedule_id"]])
        following = datetime.fromisoformat(new["next_nominal_at"])
        if following not in times_between(declared, following, following + timedelta(microseconds=1)):
            self.violate("I2", f"schedule {new['schedule_id']} goes on with {following}, which it does not ask for")
        last = new["last_nominal_at"]
        first = at if last is None else max(at, datetime.fromisoformat(last))
        undecided = old["next_nominal_at"] and datetime.fromisoformat(old["next_nominal_at"])
        if (
            undecided
            and undecided < min(following, began_at - LONGEST_JITTER)
            and (last is None or datetime.fromisoformat(last) < undecided)
        ):
            self.violate("I2", f"schedule {new['schedule_id']} goes on with {following} and has not decided {undecided}")
        passed_over = times_between(declared, first + timedelta(microseconds=1), following)
        if passed_over:
            self.violate("I2", f"schedule {new['schedule_id']} goes on with {following} and passes over {passed_over[0]}")

    def _check_end(self, old: Row, new: Row, began_at: datetime) -> None:
        """A pause, a deletion or a change after which nothing is to come has counted what was due."""
        if (
            old["next_nominal_at"] is None or self._former_schedules[new["schedule_id"]]["zone"] == SPOILED
        ):  # nobody can tell its times any more
            return
        first, last = datetime.fromisoformat(old["next_nominal_at"]), new["last_nominal_at"]
        if last is not None:
            first = max(first, datetime.fromisoformat(last) + timedelta(microseconds=1))
        left = times_between(Declared.of(self._former_schedules[new["schedule_id"]]), first, began_at - LONGEST_JITTER)
        if left:
            self.violate("I2", f"schedule {new['schedule_id']} ends and has not decided {left[0]}")

    def _read_ack(self, ack: Row) -> None:
        run = self._runs.get(ack["run_id"])
        if run is not None and (ack["epoch"] != run["epoch"] or run["state"] not in {"running", "cancelling"}):
            self.violate("I7", f"an ack of epoch {ack['epoch']} was stored for run {run['run_id']}, {run['state']} at {run['epoch']}")

    def _read_event(self, event: Row) -> None:
        self.events[event["kind"]] += 1
        if event["kind"] in {"schedule.skipped", "schedule.missed", "schedule.coalesced"}:
            self._counted[f"{event['schedule_id']} {event['kind'].rpartition('.')[2]}"] += event["detail"]["count"]
        if event["kind"] == "run.settled":
            self._settled.add(event["run_id"])

    def _check_keys(self) -> None:
        """I6 and I8: one open run per key, and none that waits for nobody."""
        open_runs: dict[str, list[str]] = defaultdict(list)
        for run in self._runs.values():
            if run["exclusive"] and run["state"] in OPEN:
                open_runs[run["overlap_key"]].append(run["run_id"])
        for key_, found in open_runs.items():
            if len(found) > 1:
                self.violate("I6", f"{len(found)} runs of key {key_} are open")
        for run in self._runs.values():
            if run["state"] == "buffered" and not open_runs[run["overlap_key"]]:
                self.violate("I8", f"run {run['run_id']} waits for nobody")

    # -- once all is quiet

    def has_open_runs(self) -> bool:
        self.read()
        return any(run["state"] not in TERMINAL for run in self._runs.values())

    def check_quiet(self) -> None:
        """I2, I4 and I11 after a minute without faults."""
        self.read()
        now = self._world.clock.now
        for schedule_id, clock in self._clocks.items():
            following = clock["next_due_at"]
            if following is not None and datetime.fromisoformat(following) < now - LATEST_DECISION:
                self.violate("I2", f"schedule {schedule_id} was due at {following} and has no decision")
            for name in ("skipped", "missed", "coalesced"):
                if clock[name] != self._counted[f"{schedule_id} {name}"]:
                    self.violate(
                        "I20", f"{name} of {schedule_id} is {clock[name]}, its events say {self._counted[f'{schedule_id} {name}']}"
                    )
            fired = sum(run["schedule_id"] == schedule_id and run["trigger"] == "schedule" for run in self._runs.values())
            if clock["fired"] != fired:
                self.violate("I20", f"schedule {schedule_id} counts {clock['fired']} runs and has {fired}")
        self._check_due_index(now)
        self._check_ready_index(now)

    def _check_due_index(self, now: datetime) -> None:
        client = self._world.ground.redis
        due = {member for member, _ in client.zrange(key(0, "due"), 0, -1, withscores=True)}
        firing = {member for member, _ in client.zrange(key(0, "firing"), 0, -1, withscores=True)}
        both = due & firing
        if both:
            self.violate("I4", f"{len(both)} schedules are due and being fired")
        for schedule_id, clock in self._clocks.items():
            is_soon = clock["next_due_at"] is not None and datetime.fromisoformat(clock["next_due_at"]) < now + timedelta(seconds=4)
            if is_soon and UUID(schedule_id).bytes not in due | firing:
                self.violate("I4", f"schedule {schedule_id} is due at {clock['next_due_at']} and not in the index")

    def _check_ready_index(self, now: datetime) -> None:
        client = self._world.ground.redis
        known = {member.decode()[50:82] for member in client.zrange(key(0, "rq"), 0, -1)}
        known |= {member.decode()[34:][50:82] for member in client.zrange(key(0, "wait"), 0, -1)}
        known |= {run.decode() for run in client.hkeys(key(0, "held"))}
        for run_id, run in self._runs.items():
            is_ready = run["state"] == "queued" and datetime.fromisoformat(run["ready_at"]) < now - UNSEEN - timedelta(seconds=3)
            if is_ready and UUID(run_id).hex not in known:
                self.violate("I11", f"run {run_id} has been ready since {run['ready_at']} and is not in the index")

    def check_end(self) -> None:
        """Every run has come to its end, its schedule counted it, and nothing but a failure used up an attempt of it."""
        self.read()
        for run_id, run in self._runs.items():
            if run["attempt"] > self._world.failures[UUID(run_id)]:
                self.violate("I19", f"run {run_id} used {run['attempt']} attempts and failed {self._world.failures[UUID(run_id)]} times")
        for run in self._runs.values():
            if run["state"] not in TERMINAL:
                self.violate("I13", f"run {run['run_id']} is still {run['state']}")
            elif run["state"] != "cancelled" and run["run_id"] not in self._settled:
                self.violate("I20", f"run {run['run_id']} ended as {run['state']}, and nobody counted it")


def _decisions(clock: Row) -> int:
    return sum(int(clock[name]) for name in ("fired", "skipped", "missed", "coalesced"))
