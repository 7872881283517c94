"""From the groups of a directory or a provider to what somebody may do here. Pure."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

Role = Literal["user", "staff", "administrator"]


@dataclass(frozen=True, slots=True)
class RoleGroups:
    """The groups of each role. Without `users` everybody may log in."""

    users: frozenset[str] = frozenset()
    staff: frozenset[str] = frozenset()
    administrators: frozenset[str] = frozenset()

    @property
    def named(self) -> bool:
        """Whether groups decide anything."""
        return bool(self.users or self.staff or self.administrators)

    @property
    def give_roles(self) -> bool:
        """Whether roles are taken from the groups; else they are managed here."""
        return bool(self.staff or self.administrators)

    def normalized(self, normal: Callable[[str], str]) -> "RoleGroups":
        """The same with every name in its normal form."""
        return RoleGroups(
            users=frozenset(map(normal, self.users)),
            staff=frozenset(map(normal, self.staff)),
            administrators=frozenset(map(normal, self.administrators)),
        )

    def admits(self, groups: Collection[str]) -> bool:
        """Whether who is in these groups may log in."""
        mine = set(groups)
        return not self.users or bool(mine & (self.users | self.staff | self.administrators))

    def role(self, groups: Collection[str]) -> Role:
        """The highest role of these groups."""
        mine = set(groups)
        if mine & self.administrators:
            return "administrator"
        return "staff" if mine & self.staff else "user"
