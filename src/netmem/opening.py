"""`netmem.open_device`: one of our NICs, or a device of the running kernel's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

if TYPE_CHECKING:
    from netmem.kernel.device import KernelDevice
    from netmem.lab.device import Device


@overload
def open_device(nic: Literal["softnic", "igb"] = "softnic", **options: Any) -> Device: ...


@overload
def open_device(nic: str, **options: Any) -> Device | KernelDevice: ...


def open_device(nic: str = "softnic", **options: Any) -> Device | KernelDevice:
    """Open a device: ``softnic`` or ``igb``, with the options of ``netmem.lab.device.open_device``.

    ``kernel:eth0`` is a network interface of this machine (``netmem.kernel.device.KernelDevice``): it needs
    the extra ``kernel`` only. The calls are the same on all: ``ethtool``, ``bind_rx``, ``bind_tx``,
    ``steer``, ``listen``, ``connect``; what was set on the kernel's is undone at the end. Errors: those of
    both; TypeError for options with a device of the kernel's.
    """
    if nic.startswith("kernel:"):
        if options:
            raise TypeError(f"{nic} has no options: {', '.join(options)}")
        from netmem.kernel.device import KernelDevice

        return KernelDevice(nic.removeprefix("kernel:"))
    from netmem.lab import device

    return device.open_device(nic, **options)
