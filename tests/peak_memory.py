"""The most memory that tensors hold at one time while a function runs, counted from torch's own record of each allocation."""

from collections.abc import Callable

from torch.autograd.profiler import profile


def peak_memory(function: Callable[[], object]) -> int:
    """Bytes on the CPU at the worst moment, beyond what was there before; exact, and the same on every machine."""
    with profile(profile_memory=True) as record:
        function()
    assert record.kineto_results is not None
    changes = [event for event in record.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        held += event.nbytes()  # negative where memory was freed
        peak = max(peak, held)
    return peak
