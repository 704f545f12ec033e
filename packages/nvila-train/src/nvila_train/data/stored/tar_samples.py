"""The members of a tar as samples: those that stand together and share their name.

The name of a sample is that of its ``.json`` member without the ending, dots included (``img.v1.0001.json``); a member
belongs to it if its name goes on from there after a dot (``img.v1.0001.0.png``). Members that belong to no record are a
sample of their own, named by WebDataset's rule, which cuts at the first dot. A damaged place belongs to the sample
whose name is in it, or to the one that lacks its record, and is one of its own otherwise.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from nvila_train.data.stored.tar_members import Member

_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset's own rule


@dataclass(kw_only=True)
class TarSample:
    """Members that stand together.

    Attributes:
        key: what they are called.
        members: sound ones and damaged places, in order.
        record: whether its record has come.
    """

    key: str
    members: list[Member] = field(default_factory=list)
    record: bool = False

    @property
    def damage(self) -> str:
        """What is wrong with the first damaged place; empty if there is none."""
        return next((member.damage for member in self.members if member.damage), "")


def samples(members: Iterable[Member]) -> Iterator[TarSample]:
    """Members as samples, in order; those without an ending are left out."""
    found = TarSample(key="")  # the sample that is being collected
    for member in members:
        if not member.damage and not _NAME.match(member.name):
            continue
        key = key_of(member)
        begins = member.name.lower().endswith(".json") and not member.damage
        if begins and not found.record:  # what stood before it and goes on from its name is its own
            own = [each for each in found.members if each.name.startswith(f"{key}.")]
            rest = [each for each in found.members if each not in own]
            if rest:
                yield TarSample(key=found.key, members=rest)
            found = TarSample(key=key, members=[*own, member], record=True)
        elif not begins and found.members and joins(member, found):
            found.members.append(member)
        else:
            if found.members:
                yield found
            found = TarSample(key=key, members=[member], record=begins)
    if found.members:
        yield found


def joins(member: Member, sample: TarSample) -> bool:
    """Whether a member that is no record belongs to a sample."""
    if sample.key and member.name.startswith(f"{sample.key}."):
        return True
    if sample.record:
        return False
    nameless = bool(member.damage) and not member.name  # the record that the sample lacks
    return nameless or (bool(sample.damage) and not sample.key) or key_of(member) == sample.key


def key_of(member: Member) -> str:
    """What the sample of a member is called, as far as the member alone tells."""
    if member.name.lower().endswith(".json"):
        return member.name[: -len(".json")]
    match = _NAME.match(member.name)
    return match[1] if match else ""
