"""Network namespaces and their TUN devices: all that the lab asks of the kernel, by descriptor and without names.

A namespace without a name lives as long as a process or descriptor in it: nothing has to be removed after a crash.
"""

import ctypes
import fcntl
import os
import re
import socket
import struct
import sys
from pathlib import Path

from wantrain.errors import WantrainError
from wantrain.lab.enter import CLONE_NEWNET
from wantrain.lab.shape import MTU_BYTES

DEVICE = "lab0"
DEVICE_QUEUE_FRAMES = 2000
"""Between a host's kernel and the switch; the shaped queue is the switch's, so that this one should never fill."""

# Requests of linux/if_tun.h and linux/sockios.h, and the flags that go with them.
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_TUN_F_CSUM, _TUN_F_TSO4 = 0x01, 0x02
_SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8914, 0x8916, 0x891C
_SIOCSIFMTU, _SIOCSIFTXQLEN = 0x8922, 0x8943
_IFF_UP, _IFF_RUNNING = 0x01, 0x40
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def available() -> str:
    """Why the lab cannot run here; empty if it can."""
    if not sys.platform.startswith("linux"):
        return f"the network lab needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "the network lab needs root, to make network namespaces"
    allowed = int(re.findall(r"CapEff:\s*([0-9a-f]+)", Path("/proc/self/status").read_text())[0], 16)
    missing = [name for name, bit in _CAPABILITIES.items() if not allowed >> bit & 1]
    if missing:
        return f"the network lab needs {' and '.join(missing)}, which this container or sandbox does not give"
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR))
    except OSError as error:
        return f"the network lab needs /dev/net/tun: {error.strerror}"
    return ""


def new_namespace() -> int:
    """A new network namespace, which this thread is moved into; its descriptor.

    Raises:
        WantrainError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise WantrainError(f"no new network namespace: {os.strerror(number)}", hint="run as root, outside a sandbox")
    return current_namespace()


def current_namespace() -> int:
    """Descriptor of the network namespace of this thread."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def new_device(ip_address: str, congestion: str) -> int:
    """A TUN device that is up, with `ip_address`/24, in this thread's namespace; its descriptor, which does not block.

    Args:
        congestion: TCP's congestion control in the namespace where a socket asks for none; "" is the machine's.

    Raises:
        WantrainError: the kernel has no such congestion control.
        OSError: the kernel refuses the device.
    """
    # No neighbour discovery on the links, and no memory of earlier connections: each run starts from the same state.
    for path, value in (("ipv6/conf/all/disable_ipv6", "1"), ("ipv6/conf/default/disable_ipv6", "1")):
        if Path("/proc/sys/net", path).exists():
            Path("/proc/sys/net", path).write_text(value)
    Path("/proc/sys/net/ipv4/tcp_no_metrics_save").write_text("1")
    if congestion:
        try:
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(congestion)
        except OSError as error:
            there = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
            raise WantrainError(
                f"congestion control {congestion!r} is refused ({error.strerror}); this kernel has {', '.join(there)}",
                hint=f"choose one of these, or load it: modprobe tcp_{congestion}",
            ) from None

    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, _request(DEVICE, struct.pack("H", _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR)))
    # The kernel need neither sum up nor cut what the lab only passes on: one frame stands for many packets.
    fcntl.ioctl(device, _TUNSETOFFLOAD, _TUN_F_CSUM | _TUN_F_TSO4)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFMTU, _request(DEVICE, struct.pack("i", MTU_BYTES)))
        fcntl.ioctl(control, _SIOCSIFTXQLEN, _request(DEVICE, struct.pack("i", DEVICE_QUEUE_FRAMES)))
        fcntl.ioctl(control, _SIOCSIFADDR, _request(DEVICE, _internet(ip_address)))
        fcntl.ioctl(control, _SIOCSIFNETMASK, _request(DEVICE, _internet("255.255.255.0")))
        for name in (DEVICE, "lo"):
            fcntl.ioctl(control, _SIOCSIFFLAGS, _request(name, struct.pack("H", _IFF_UP | _IFF_RUNNING)))
    return device


def members(namespaces: list[int]) -> list[int]:
    """Process ids of all that live in one of these network namespaces, given as descriptors."""
    wanted = {(found.st_dev, found.st_ino) for found in map(os.fstat, namespaces)}
    inside = []
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            found = os.stat(f"/proc/{process}/ns/net")
        except OSError:  # it has ended meanwhile
            continue
        if (found.st_dev, found.st_ino) in wanted:
            inside.append(int(process))
    return inside


def _request(name: str, value: bytes) -> bytes:
    """`struct ifreq`: 16 bytes of name, 24 of value."""
    return struct.pack("16s24s", name.encode(), value)


def _internet(ip_address: str) -> bytes:
    """`struct sockaddr_in` without a port."""
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(ip_address))
