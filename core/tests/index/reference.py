"""What DISPATCH must do, as plain values: no sorted sets, no pages, no parking; every question is answered by looking at all runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from .loads import breaker_of, resources_of

__all__ = ["Reference"]

TABLE = "2122120212212"


@dataclass
class Tenant:
    """One tenant in one queue and class."""

    pass_ms: float = 0.0
    runs: list[str] = field(default_factory=list)
    is_away: bool = True


class Reference:
    """One queue. A class is eligible if one of its tenants has a run with room on all its resources; the lowest pass goes first."""

    def __init__(self) -> None:
        self.tenants: dict[tuple[str, str], Tenant] = {}
        self.served_ms = dict.fromkeys("012", 0.0)
        self.cursor = 0
        self.caps: dict[str, int] = {}
        self.weights: dict[str, int] = {}
        self.held: dict[str, tuple[str, int, int]] = {}
        self.expected_s: dict[str, float] = {}

    def push(self, member: str) -> None:
        """A run becomes ready."""
        tenant = self.tenants.setdefault((member[1], member[3:35]), Tenant())
        tenant.runs = sorted([*tenant.runs, member])
        self._arrive(member[1], tenant)

    def dispatch(self, now_ms: int) -> str | None:
        """The one run that goes next, or none."""
        for step in range(len(TABLE)):
            priority = TABLE[(self.cursor + step) % len(TABLE)]
            while present := [(x.pass_ms, key[1]) for key, x in self.tenants.items() if key[0] == priority and not x.is_away]:
                tenant = self.tenants[priority, min(present)[1]]
                if self._oldest(tenant) is not None:
                    self.cursor = (self.cursor + step + 1) % len(TABLE)
                    return self._take(priority, min(present)[1], now_ms)
                tenant.is_away = True
        return None

    def set_cap(self, resource: str, most: int) -> None:
        """A cap changes."""
        self.caps[resource] = most
        self._welcome()

    def release(self, member: str, now_ms: int) -> None:
        """A run ended."""
        _, cost_ms, since_ms = self.held.pop(member)
        seconds = (now_ms - since_ms) / 1000
        known = self.expected_s.get(member[118:150])
        clamped = min(max(seconds, 1), 600)
        expected = clamped if known is None else known + (clamped - known) / 4
        self.expected_s.pop(member[118:150], None)
        if expected > 1.001:
            self.expected_s[member[118:150]] = float(f"{expected:.3f}")
        tenant = self.tenants[member[1], member[3:35]]
        tenant.pass_ms = max(0.0, tenant.pass_ms + (seconds * 1000 - cost_ms) / self.weights.get(member[3:35], 1))
        self._welcome()

    def has_room(self, member: str) -> bool:
        """On all resources of the run."""
        used = [resource for held in self.held for resource in resources_of(held)]
        return all(
            used.count(resource) < self.caps.get(name, 10**9)
            for resource in resources_of(member)
            for name in (resource, breaker_of(resource))
        )

    def _welcome(self) -> None:
        """Whoever has a run with room is in line."""
        for key, tenant in self.tenants.items():
            if self._oldest(tenant) is not None:
                self._arrive(key[0], tenant)

    def _arrive(self, priority: str, tenant: Tenant) -> None:
        """Who comes back starts where the others are: being away earned nothing."""
        if tenant.is_away:
            tenant.is_away, tenant.pass_ms = False, max(tenant.pass_ms, self.served_ms[priority])

    def _oldest(self, tenant: Tenant) -> str | None:
        return next((member for member in tenant.runs if self.has_room(member)), None)

    def _take(self, priority: str, tenant_id: str, now_ms: int) -> str:
        tenant = self.tenants[priority, tenant_id]
        member = self._oldest(tenant)
        assert member is not None
        tenant.runs.remove(member)
        cost_ms = int(self.expected_s.get(member[118:150], 1.0) * 1000)
        self.served_ms[priority] = max(self.served_ms[priority], tenant.pass_ms)
        tenant.pass_ms += cost_ms / self.weights.get(tenant_id, 1)
        self.held[member] = (member, cost_ms, now_ms)
        return member
