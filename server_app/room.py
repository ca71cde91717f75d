"""How much memory a hypernetwork takes, and which further clients there is room for: judged before it is taken."""

from collections.abc import Mapping

import torch

from common.device import free_memory
from server_app.hypernetwork import HyperNetwork, Member

# Peaks, measured by benchmarks/memory.py. A value of the network has a gradient and Adam's two moments beside it; of a
# generated one there are the delta that came, the value itself, the delta padded to whole chunks and its mean's share.
BYTES_A_VALUE = 16.7
BYTES_A_GENERATED_VALUE = 16.7
# Of the value and its moments in the copy from which a checkpoint can be written at any time, in the server's memory.
BYTES_A_COPIED_VALUE = 12.0
_GIB = 2**30


class Room:
    """What a device has room for.

    Parameters
    ----------
    device: that of the hypernetwork.
    is_copied: whether rounds end with a copy of it in the server's memory, from which a checkpoint can be written.
    """

    def __init__(self, device: torch.device, is_copied: bool) -> None:
        self._device = device
        self._bytes_a_value = BYTES_A_VALUE
        if device.type == "cpu" and is_copied:
            self._bytes_a_value += BYTES_A_COPIED_VALUE

    def refused(self, hn: HyperNetwork, members: Mapping[str, Member]) -> dict[str, str]:
        """Who of these cannot be added, each with a sentence that says why.

        Each is judged by the room that is left by those who are known, and by those among these who need less: one
        that asks for too much takes nothing from the others.
        """
        refused = {
            key: f"It has {member.num_params:,} parameters (K), but {hn.num_params(key):,} in the checkpoint: a "
            "client whose model changed needs a new key."
            for key, member in members.items()
            if key in hn.members and hn.num_params(key) != member.num_params
        }
        candidates = {key: member for key, member in members.items() if key not in refused}
        free = free_memory(self._device)
        if self.needed(hn, candidates) <= free:
            return refused
        fitting: dict[str, Member] = {}
        for key, member in sorted(candidates.items(), key=lambda each: each[1].num_params):
            more = fitting | {key: member}
            if self.needed(hn, more) <= free:
                fitting = more
            else:
                refused[key] = (
                    f"The hypernetwork does not fit with it: {self._in_words(hn, more, free)}. Lower hidden-dim (now "
                    f"{hn.hidden_dim}: the heads grow with it), let fewer sizes of models take part, or use a machine "
                    "with more memory."
                )
        return refused

    def taken_by(self, hn: HyperNetwork, members: Mapping[str, Member]) -> str:
        """What these will take beside those who are known, in words; empty where they bring nothing new."""
        return self._in_words(hn, members, free_memory(self._device)) if hn.count_new_values(members) else ""

    def needed(self, hn: HyperNetwork, members: Mapping[str, Member]) -> float:
        """Bytes that a round takes at its peak with these beside those who are known; 0 where they bring nothing."""
        values = hn.count_new_values(members)
        generated = sum(member.num_params for member in (hn.members | dict(members)).values())
        return self._bytes_a_value * values + BYTES_A_GENERATED_VALUE * generated if values else 0.0

    def _in_words(self, hn: HyperNetwork, members: Mapping[str, Member], free: int) -> str:
        return (
            f"{hn.count_new_values(members):,} values more for {len(members)} clients, chunks of {hn.chunk_size}; with "
            f"gradients and Adam's moments {self.needed(hn, members) / _GIB:.2f} GiB of {free / _GIB:.2f} GiB that "
            f"are free on {self._device.type}"
        )
